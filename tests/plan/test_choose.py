"""Which rung fits, which is taken, and what a refusal says."""

import re

import pytest

from handscroll.base.config import apply_override
from handscroll.base.errors import CapacityError
from handscroll.plan.choose import check, fits, longest, options, resolve
from handscroll.plan.forecast import predict
from handscroll.plan.show import plan
from handscroll.train.step import Memory


def test_the_fastest_is_taken_where_all_fit(workload, machine):
    assert resolve(workload(rung="auto"), machine(20_000)).rung == "plain"


@pytest.mark.parametrize("megabytes", [1900, 1100, 800, 600, 540, 505])
def test_what_is_taken_fits_and_is_the_fastest(workload, machine, megabytes):
    here = machine(megabytes)
    taken = resolve(workload(rung="auto", length=8192), here)
    assert fits(predict(taken, here), here)
    assert taken.chunk % 64 == 0
    Memory(rung=taken.rung, chunk=taken.chunk, stage_layers=taken.stage_layers, offload=taken.offload)
    for other in options(workload(rung="auto", length=8192), here):
        same_place = other.workload.offload == taken.offload
        assert not (same_place and fits(other, here)) or other.seconds >= predict(taken, here).seconds


def test_less_memory_never_gives_a_faster_rung(workload, machine):
    times = []
    for megabytes in (2500, 1900, 1100, 800, 600, 540, 505):
        here = machine(megabytes)
        times.append(predict(resolve(workload(rung="auto", length=8192), here), here).seconds)
    assert times == sorted(times)
    assert times[0] < times[-1]


def test_the_same_numbers_give_the_same_choice(workload, machine):
    assert len({resolve(workload(rung="auto", length=8192), machine(700)) for _ in range(3)}) == 1


def test_given_settings_stay(workload, machine):
    assert resolve(workload(rung="staged", stage_layers=3), machine(20_000)).stage_layers == 3
    assert resolve(workload(rung="chunk-outer", chunk=192), machine(20_000)).chunk == 192
    assert resolve(workload(rung="auto", chunk=256), machine(20_000)).chunk == 256
    assert resolve(workload(rung="layer-outer", offload="disk"), machine(20_000)).offload == "disk"


def test_a_refusal_names_a_setting_that_passes(workload, machine):
    here = machine(700)
    refused = workload(length=8192)
    with pytest.raises(
        CapacityError, match=r"rung 'plain' would take 1,\d+ MB of memory, 630 MB of the 700 MB"
    ) as error:
        check(refused, here)
    values: dict = {}
    for option in re.findall(r"--set (\S+)", str(error.value)):
        apply_override(values, option)
    settings = Memory.parse(values["memory"], "refusal")
    names = ("rung", "chunk", "stage_layers", "offload")
    named = workload(length=8192, **{name: getattr(settings, name) for name in names})
    assert settings.rung != "plain"
    assert check(named, here).host <= here.usable


def test_a_refusal_without_a_way_out_names_the_longest_length(workload, machine):
    here = machine(520)
    refused = workload(length=1 << 20, rung="auto")
    with pytest.raises(CapacityError, match=r"Rows of up to ([\d,]+) tokens would") as error:
        check(refused, here)
    found = re.search(r"up to ([\d,]+) tokens", str(error.value))
    assert found is not None
    most = int(found[1].replace(",", ""))
    assert most == longest(refused, here)
    check(workload(length=most, rung="auto"), here)
    with pytest.raises(CapacityError):
        check(workload(length=most + 128, rung="auto"), here)


def test_nothing_fits(workload, machine):
    with pytest.raises(CapacityError, match="no length fits"):
        check(workload(rung="auto"), machine(300))


def test_a_full_disk_is_refused(workload, machine):
    with pytest.raises(CapacityError, match=r"\d+ MB of disk, 1 MB are free"):
        check(workload(), machine(20_000, disk=10**6))


def test_a_stage_that_is_not_the_widest_is_refused_too(workload, machine):
    """Fewer tokens, but several micro-batches: gradients and activations at once."""
    wide, several = workload(length=1024, rung="plain"), workload(length=1000, micro=4, rung="plain")
    hosts = [predict(one, machine(20_000)).host for one in (wide, several)]
    assert hosts[0] < hosts[1]
    between = machine(sum(hosts) // 2 // 1_000_000 * 10 // 9)
    assert not plan([wide], between).refusal
    made = plan([wide, several], between)
    assert "1 x 1,000 tokens on rung 'plain' would take" in made.refusal
    assert "This fits" in made.refusal
