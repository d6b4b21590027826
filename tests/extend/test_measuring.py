"""What a lengthening measures is told beforehand, and counted while it runs."""

import pytest
from typer.testing import CliRunner

import handscroll
from handscroll.cli.main import app
from handscroll.extend import extend as module
from handscroll.extend.extend import extension
from handscroll.extend.measuring import Measuring
from handscroll.plan.calibration import Calibration, cache_file, save_calibration
from tests.conftest import ROOT

TEXT = [ROOT / "handscroll" / "lm.py"]


@pytest.mark.parametrize("measured", [128, 384])
def test_progress_counts_to_its_total(tiny_folder, measured, monkeypatch):
    monkeypatch.setattr(module, "MINUTE", 0.0)
    heard, told = [], []
    settings = {"text": TEXT, "measured": measured, "progress": lambda *words: heard.append(words)}
    result = extension(handscroll.load(tiny_folder), 128, "yarn", on_plan=told.append, **settings)
    done, total = [one[1] for one in heard], {one[2] for one in heard}
    count = max(1, measured // 128)
    entries = len({one[0] for one in heard if one[0].startswith("candidate")})
    final = count * len(result.outcome.rows) if count > 1 else 0
    assert done == sorted(done) and total == {done[-1]} == {64 * count + 128 * (entries + final)}
    assert len(told) == 1 and f"{entries} candidates on a window of 128 tokens" in told[0] and "--method" in told[0]


def test_a_short_measurement_is_not_announced(tiny_folder):
    told = []
    extension(handscroll.load(tiny_folder), 128, "yarn", text=TEXT, measured=128, on_plan=told.append)
    assert not told


def test_longer_windows_and_own_text_take_longer(tiny_folder):
    from handscroll.plan.workloads import checkpoint_workload

    workload = checkpoint_workload(str(tiny_folder), {"kind": "extend", "length": 256, "micro": 1})
    seconds = lambda *sizes: Measuring(*sizes).seconds(workload, Calibration())  # noqa: E731
    assert 3.7 < seconds(1 << 16, 64, 1, 5, 5) / seconds(1 << 15, 64, 1, 5, 5) < 4.1, "attention over long windows"
    assert seconds(128, 64, 1, 5, 5, 1000) > seconds(128, 64, 1, 5, 5)


def test_plans_tell_the_measuring_and_the_seconds_of_a_request(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    save_calibration(Calibration(measured=True), cache_file(0))
    run = lambda *words: CliRunner().invoke(app, ["plan", *words], catch_exceptions=False).stdout  # noqa: E731
    assert "measuring: the model writes" in run("extend", str(tiny_folder), "--to", "256")
    assert "measuring: nothing" in run("extend", str(tiny_folder), "--to", "256", "--method", "pi")
    told = run("generate", str(tiny_folder), "--prompt-tokens", "100", "--max-tokens", "29")
    assert "time: reading about" in told and "writing about" in told and "30 %" in told
