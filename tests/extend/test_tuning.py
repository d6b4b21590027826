"""A tuning that was stopped is not saved as one that is done, and what it needs is looked at before anything else."""

import os
import signal
from contextlib import contextmanager

import pytest
from typer.testing import CliRunner

from handscroll.base.errors import CapacityError, CheckpointError, ConfigError, DataError
from handscroll.cli import extend as command
from handscroll.cli.main import app
from handscroll.extend.choice import Chooser
from handscroll.extend.extend import extension
from handscroll.extend.tune import TuneSettings
from handscroll.lm import load
from handscroll.plan.machine import Machine
from handscroll.train import planned
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


@pytest.fixture
def refused(tiny_folder, monkeypatch, tmp_path):
    """A function that lengthens with a tuning, which must be refused before anything is measured."""
    monkeypatch.setattr(Chooser, "choose", lambda *given: pytest.fail("it measured first"))

    def call(error, said, text=TEXT, folder=tmp_path / "run", **settings):
        tune = TuneSettings.parse({"files": (str(text),), "steps": 3, "rows": 1} | settings, "test")
        with pytest.raises(error, match=said):
            extension(load(tiny_folder), 128, text=TEXT, tune=tune, folder=folder)

    return call


def test_a_tuning_without_a_folder_is_refused_before_anything_is_measured(refused):
    refused(ConfigError, "needs a run folder", folder=None)


def test_too_little_text_for_a_tuning_is_refused_before_anything_is_measured(refused, tmp_path):
    (tmp_path / "short.txt").write_text("def walk(top):\n")
    refused(DataError, "one row needs 128", text=tmp_path / "short.txt")
    assert not (tmp_path / "run").exists()


def test_a_tuning_that_will_not_fit_is_refused_before_anything_is_measured(refused, monkeypatch, tmp_path):
    monkeypatch.setattr(planned, "this_machine", lambda *given: Machine(memory=1 << 20, disk=1 << 40))
    refused(CapacityError, "--force")
    assert not (tmp_path / "run").exists()


def test_another_tuning_in_the_folder_is_refused_before_anything_is_measured(tiny_folder, refused, tmp_path):
    tune = TuneSettings(files=(TEXT,), steps=1, rows=1)
    extension(load(tiny_folder), 128, "none", tune=tune, folder=tmp_path / "run")
    plan = (tmp_path / "run" / "plan.json").read_bytes()
    refused(CheckpointError, "another recipe", steps=3)
    assert (tmp_path / "run" / "plan.json").read_bytes() == plan


def test_a_tuning_does_not_go_on_with_the_positions_of_another_method(tiny_folder, tmp_path):
    """A killed tuning with one method left its weights in the folder, and another method would take them up."""
    lm, tune = load(tiny_folder), TuneSettings(files=(TEXT,), steps=3, rows=1)

    def kill(record):
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        extension(lm, 128, "pi", tune=tune, folder=tmp_path / "run", on_record=kill)
    with pytest.raises(CheckpointError, match=r"method: .*pi.*, now .*ntk"):
        extension(lm, 128, "ntk", tune=tune, folder=tmp_path / "run")
    assert extension(lm, 128, "pi", tune=tune, folder=tmp_path / "run").lm.provenance["tuned"]["steps"] == 3
