"""`bench.published` does each step once for each setting, and never puts two models on one page."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import published


@pytest.fixture
def steps(monkeypatch):
    """The calls of a step that reads two options and writes an empty record."""
    calls = []

    def work(folder, record, **settings):
        calls.append(settings)
        record.write_text("", encoding="utf-8")

    monkeypatch.setattr(published, "STEPS", {"ruler": published.Step(work, ("model", "samples"))})
    monkeypatch.setattr(published, "evaluation_page", lambda found: None)
    monkeypatch.setattr(published, "render", lambda page: "page")
    return calls


def publish(folder, model, *more):
    published.publish(published.arguments().parse_args([model, "--out", str(folder), "--steps", "ruler", *more]))


def test_a_step_is_done_once_for_each_setting(steps, tmp_path):
    for samples in ("1", "1", "2", "1"):
        publish(tmp_path, "a", "--samples", samples)
    assert [one["samples"] for one in steps] == [1, 2, 1]  # the record was that of two samples at the end
    publish(tmp_path, "a", "--samples", "1", "--lengths", "512")  # which this step does not read
    assert len(steps) == 3
    (tmp_path / "ruler.jsonl").unlink()
    publish(tmp_path, "a", "--samples", "1")
    assert len(steps) == 4


def test_a_folder_holds_one_model(steps, tmp_path):
    publish(tmp_path, "a")
    with pytest.raises(SystemExit, match="holds the page of a"):
        publish(tmp_path, "b")
    (tmp_path / "minutes.jsonl").write_text(json.dumps({"step": "ruler", "minutes": 1.0}) + "\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="without a name"):
        publish(tmp_path, "a")
    assert len(steps) == 1


def test_unknown_steps_are_refused(steps, tmp_path):
    with pytest.raises(SystemExit, match="methods is none of"):
        publish(tmp_path / "new", "a", "--steps", "ruler,methods")
    assert not (tmp_path / "new").exists()


def test_a_command_that_fails_is_told_from_one_that_finds_something(monkeypatch, tmp_path):
    record, writes = tmp_path / "doctor.jsonl", True
    record.write_text("of an earlier run", encoding="utf-8")

    def ended(words, check):
        assert words[-1] == str(record), "the command tells this name, on the screen and in the record"
        if writes:
            Path(words[-1]).write_text("{}", encoding="utf-8")
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(subprocess, "run", ended)
    with pytest.raises(SystemExit, match="status 1"):
        published.ruler(tmp_path, record, model="model", lengths="512", samples=1)
    assert record.read_text(encoding="utf-8") == "of an earlier run"
    published.doctor(tmp_path, record, model="model")
    assert record.read_text(encoding="utf-8") == "{}"
    writes = False
    with pytest.raises(SystemExit, match="status 1"):
        published.doctor(tmp_path, record, model="model")
    assert record.read_text(encoding="utf-8") == "{}" and list(tmp_path.iterdir()) == [record]


def test_a_command_that_is_stopped_leaves_the_earlier_record(monkeypatch, tmp_path):
    record = tmp_path / "doctor.jsonl"
    record.write_text("of an earlier run", encoding="utf-8")

    def stopped(words, check):
        Path(words[-1]).write_text("{", encoding="utf-8")
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        published.doctor(tmp_path, record, model="model")
    assert record.read_text(encoding="utf-8") == "of an earlier run"
