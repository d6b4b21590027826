"""Available memory from the system's files, the calibration's cache, and the fit of speeds."""

import pytest

from handscroll.base.errors import ConfigError
from handscroll.plan.calibration import Calibration, cache_file, load_calibration, save_calibration
from handscroll.plan.duration import seconds
from handscroll.plan.machine import RAPL, WATTS, Machine, available_memory, drawn_watts, this_machine
from handscroll.plan.show import plan
from handscroll.train.probe import _timed, fitted
from tests.plan.conftest import llama

STATUS = "VmSize: 900 kB\nVmRSS:\t 100 kB\n"
MEMORY = "MemTotal: 9000 kB\nMemAvailable: 5000 kB\n"


def system(**files):
    names = {"status": "/proc/self/status", "memory": "/proc/meminfo", "group": "/proc/self/cgroup"}
    known = {names.get(name, name): text for name, text in ({"status": STATUS, "memory": MEMORY} | files).items()}
    return known.get


def test_what_is_available_and_our_own_pages():
    assert available_memory(system()) == 5100 * 1024


def test_energy_is_said_where_the_power_is_known(monkeypatch, workload):
    monkeypatch.delenv(WATTS, raising=False)
    assert drawn_watts(system()) == 0
    assert drawn_watts(system(**{RAPL.format(0): "45000000\n", RAPL.format(1): "15000000\n"})) == 60
    monkeypatch.setenv(WATTS, "90")
    assert drawn_watts(system(**{RAPL.format(0): "45000000\n"})) == 90
    made = plan([workload(steps=7)], Machine(memory=1 << 40, disk=1 << 40, watts=90))
    assert made.energy == pytest.approx(made.seconds * 90 / 3600) and made.energy > 0
    assert made.power.endswith(" Wh at 90 W") and made.record()["watt_hours"] == pytest.approx(made.energy, rel=1e-3)
    assert plan([workload()], Machine(memory=1 << 40, disk=1 << 40)).power == ""
    monkeypatch.setenv(WATTS, "much")
    with pytest.raises(ConfigError, match="HANDSCROLL_WATTS=much: give a number of watts"):
        drawn_watts()


def test_a_control_group_limits_version_2():
    files = {
        "group": "0::/a/b\n",
        "/sys/fs/cgroup/a/b/memory.max": "max\n",
        "/sys/fs/cgroup/a/b/memory.current": "1\n",
        "/sys/fs/cgroup/a/memory.max": f"{3000 * 1024}\n",
        "/sys/fs/cgroup/a/memory.current": f"{1000 * 1024}\n",
        "/sys/fs/cgroup/a/memory.stat": f"inactive_file {500 * 1024}\n",
    }
    assert available_memory(system(**files)) == (100 + 3000 - 1000 + 500) * 1024


def test_a_control_group_limits_version_1():
    files = {
        "group": "5:cpu:/x\n4:memory:/x\n0::/\n",
        "/sys/fs/cgroup/memory/x/memory.limit_in_bytes": f"{2000 * 1024}\n",
        "/sys/fs/cgroup/memory/x/memory.usage_in_bytes": f"{500 * 1024}\n",
    }
    assert available_memory(system(**files)) == 1600 * 1024


def test_this_machine_has_something(tmp_path):
    here = this_machine(tmp_path / "not" / "yet")
    assert 0 < here.usable < here.memory
    assert here.disk > 0


def test_the_cache_comes_back_and_damage_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load_calibration(3) is None
    kept = Calibration(base=123_456_789, threads=3, measured=True)
    path = save_calibration(kept)
    assert path == cache_file(3) and tmp_path in path.parents
    assert load_calibration(3) == kept
    assert load_calibration(4) is None
    for damage in ("{", "[]", '{"format": 0}', '{"format": 1, "base": -1}', '{"format": 1, "what": 1}'):
        path.write_text(damage)
        assert load_calibration(3) is None


def test_the_fit_finds_the_speeds_that_made_the_times():
    truth = Calibration(product=1.1e-11, product_narrow=4e-12, attention=6e-12, attention_narrow=4e-12)
    runs = [run for precision in ("float32", "bfloat16") for run in _timed(precision)]
    found = fitted(runs, [seconds(run, truth) for run in runs], Calibration())
    spec = llama(layers=8, width=384, heads=6, kv_heads=3, head_size=64, mlp_width=1024, vocab=4096, tied=False)
    for run in runs:
        other = run.changed(spec=spec, length=2 * run.length)
        assert seconds(other, found) == pytest.approx(seconds(other, truth), rel=0.05)
