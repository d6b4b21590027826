"""An interrupted lengthening goes on where it stopped, with the same table."""

import pytest
import torch
from typer.testing import CliRunner

from handscroll.cli.main import app
from handscroll.extend import trials
from handscroll.extend.extend import extension
from handscroll.extend.remembered import Remembered
from handscroll.lm import load
from handscroll.nn.quantised import quantised


@pytest.fixture
def counted(monkeypatch):
    """The windows that are measured; after `stop` of them the user interrupts."""
    seen, plain = {"windows": 0, "stop": 1 << 30}, trials.losses

    def counting(*given, **more):
        if seen["windows"] == seen["stop"]:
            raise KeyboardInterrupt
        seen["windows"] += 1
        return plain(*given, **more)

    monkeypatch.setattr(trials, "losses", counting)
    return seen


def lengthened(lm, text, remember):
    outcome = extension(lm, 256, text=text, measured=512, remember=remember).outcome
    assert outcome is not None
    return [(row.candidate.name, row.long, row.short) for row in outcome.rows], outcome.base


def test_measurements_are_kept(tiny_folder, tmp_path, counted):
    lm = load(tiny_folder)
    (tmp_path / "a.txt").write_text("def walk(top):\n    for name in top:\n        yield name\n" * 80)
    want = lengthened(lm, tmp_path / "a.txt", None)
    whole, counted["windows"], counted["stop"] = counted["windows"], 0, 5
    with pytest.raises(KeyboardInterrupt):
        lengthened(lm, tmp_path / "a.txt", tmp_path / "kept")
    assert (tmp_path / "kept" / "measured.jsonl").exists()
    counted["windows"], counted["stop"] = 0, 1 << 30
    assert lengthened(lm, tmp_path / "a.txt", tmp_path / "kept") == want
    assert counted["windows"] <= whole - 5
    counted["windows"] = 0
    assert lengthened(lm, tmp_path / "a.txt", tmp_path / "kept") == want and counted["windows"] == 0
    with torch.no_grad():
        next(iter(lm.model.parameters())).mul_(1.5)  # another model has other losses
    assert lengthened(lm, tmp_path / "a.txt", tmp_path / "kept") != want


def test_a_damaged_file_costs_only_what_it_lost(tiny_folder, tmp_path):
    lm = load(tiny_folder)
    memory = Remembered(tmp_path, lm)
    assert memory.value("a", lambda: {"x": 1})["x"] == 1 and memory.value("b", lambda: {"x": 2})["x"] == 2
    path = tmp_path / "measured.jsonl"
    path.write_bytes(path.read_bytes() + b'{"of": "cut')
    again = Remembered(tmp_path, lm)
    assert again.value("b", lambda: {"x": 9})["x"] == 2 and again.used == 1
    assert again.value("c", lambda: {"x": 3})["x"] == 3
    assert Remembered(tmp_path, lm).value("c", lambda: {"x": 9})["x"] == 3


def test_the_command_says_where_it_goes_on_and_cleans_up(tiny_folder, tmp_path, counted):
    (tmp_path / "a.txt").write_text("def walk(top):\n    for name in top:\n        yield name\n" * 80)
    command = ["extend", str(tiny_folder), "--to", "128", "--text", str(tmp_path / "a.txt")]
    command += ["--out", str(tmp_path / "b")]
    counted["stop"] = 3
    stopped = CliRunner().invoke(app, command)
    assert stopped.exit_code != 0 and "b.measuring" in stopped.output and not (tmp_path / "b").exists()
    counted["stop"] = 1 << 30
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "b.measuring").exists() and (tmp_path / "b").is_dir()


def test_a_quantised_file_is_measured_as_it_lies_and_floats_are_saved(tiny_folder, tmp_path, monkeypatch):
    plain, measured = trials.losses, []

    def seen(lm, *given, **more):
        measured.append(quantised(lm.model))
        return plain(lm, *given, **more)

    monkeypatch.setattr(trials, "losses", seen)
    file = load(tiny_folder).export_gguf(tmp_path / "a.gguf", "q8_0")
    (tmp_path / "a.txt").write_text("def walk(top):\n    for name in top:\n        yield name\n" * 80)
    command = ["extend", str(file), "--to", "128", "--text", str(tmp_path / "a.txt")]
    for name, more in (("plain", []), ("tuned", ["--tune", str(tmp_path / "a.txt"), "--steps", "1", "--rows", "1"])):
        done = CliRunner().invoke(app, [*command, *more, "--out", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
    assert measured and all(measured)
    saved, floats = load(tmp_path / "plain"), load(file, weights="float")
    assert saved.context == 128 and not quantised(saved.model) and saved.provenance["measured"]
    want = dict(floats.model.named_parameters())
    for name, one in saved.model.named_parameters():  # most bytes of this file are float16: its widths are no 32s
        assert torch.equal(one, want[name].half().float()), name
    tuned = load(tmp_path / "tuned").provenance
    assert tuned["before"] == saved.provenance["before"] and tuned["tuned"]["steps"] == 1
