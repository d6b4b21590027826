"""A tuning that was stopped is not saved as one that is done, and what it needs is looked at before anything else."""

import os
import signal
from contextlib import contextmanager

import pytest
from typer.testing import CliRunner

from handscroll.cli import extend as command
from handscroll.cli.main import app
from handscroll.extend.extend import extension
from handscroll.extend.tune import TuneSettings
from handscroll.lm import load
from tests.extend.material import TEXT


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_tuning_raises(tiny_folder, tmp_path, way):
    lm, tune = load(tiny_folder), TuneSettings(files=(TEXT,), steps=3, rows=1)

    def stop(record):
        os.kill(os.getpid(), way)

    with pytest.raises(KeyboardInterrupt, match=r"run was stopped after 1 of 3 steps"):
        extension(lm, 128, "none", tune=tune, folder=tmp_path / "run", on_record=stop)
    done = extension(lm, 128, "none", tune=tune, folder=tmp_path / "run")
    assert done.lm.provenance["tuned"]["steps"] == 3


def test_the_command_of_a_stopped_tuning_saves_nothing_and_goes_on(tiny_folder, tmp_path, monkeypatch):
    @contextmanager
    def stopping(*given):
        yield lambda done, note, total: os.kill(os.getpid(), signal.SIGINT) if note.startswith("tuning") else None

    words = ["extend", str(tiny_folder), "--to", "128", "--text", TEXT, "--tune", TEXT, "--steps", "3", "--rows", "1"]
    words += ["--measured", "256", "--lora", "2", "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(command, "bar", stopping)
        stopped = CliRunner().invoke(app, words)
    assert stopped.exit_code == 130 and "out.tuning" in stopped.output and "the same command goes on" in stopped.output
    assert not (tmp_path / "out").exists() and (tmp_path / "out.measuring").exists()
    assert not (tmp_path / "out.tuning" / "adapter").exists()
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert load(tmp_path / "out").provenance["tuned"]["steps"] == 3 and not (tmp_path / "out.measuring").exists()
