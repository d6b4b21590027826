"""`bench.lengthening` takes up tokens, models and results under their own settings alone."""

import argparse
import json
from pathlib import Path

import pytest

from bench import lengthening
from bench.lengthening_table import tables


@pytest.fixture
def options(tmp_path):
    given = {"text": str(tmp_path), "work": str(tmp_path / "work"), "out": str(tmp_path / "out.jsonl"), "vocab": 280}
    given |= {"rows": 8, "pretrain_steps": 2400, "tune_steps": 200, "tune_rows": 4, "tune_rate": 3e-4, "windows": 0}
    return argparse.Namespace(**given, precision="float32", device="cpu")


def job(options, **other):
    changed = argparse.Namespace(**vars(options) | other)
    return lengthening.Job("bert", 0, changed, lengthening.Clock(0.0, 0.0))


def keep(options, steps):
    line = {"family": "bert", "seed": 0, "method": "tile", "steps": steps, "settings": job(options).settings(steps)}
    with Path(options.out).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


TUNING = [{"tune_rows": 8}, {"tune_rate": 5e-4}, {"precision": "bfloat16"}]


@pytest.mark.parametrize("other", [{"vocab": 512}, {"rows": 16}, {"pretrain_steps": 9}, {"windows": 9}, *TUNING])
def test_a_file_of_results_holds_one_set_of_settings(options, other):
    keep(options, 0)
    keep(options, 200)
    for steps in (0, 200):
        lengthening.agree(job(options), steps)
    with pytest.raises(SystemExit, match=f"{next(iter(other))} .*give another --out"):
        lengthening.agree(job(options, **other), 200)
    if other in TUNING:
        lengthening.agree(job(options, **other), 0)  # which was not tuned


def test_results_of_before_are_not_mixed_with_new_ones(options):
    keep(options, 0)
    line = json.loads(Path(options.out).read_text(encoding="utf-8"))
    del line["settings"]
    Path(options.out).write_text(json.dumps(line) + "\n", encoding="utf-8")
    with pytest.raises(SystemExit, match="give another --out"):
        lengthening.agree(job(options), 0)


@pytest.mark.parametrize("other", [{"vocab": 512}, {"text": "elsewhere"}])
def test_tokens_are_of_one_text_and_vocabulary(options, other):
    here = job(options)
    (here.work / "tokens").mkdir(parents=True)
    (here.work / "tokens" / "index.json").write_text("{}", encoding="utf-8")
    (here.work / "tokens.settings.json").write_text(json.dumps(here.text), encoding="utf-8")
    lengthening.prepare(here)
    with pytest.raises(SystemExit, match="give another --work"):
        lengthening.prepare(job(options, **other))


def test_a_short_model_is_of_its_settings_and_says_its_precision(options, monkeypatch, capsys):
    monkeypatch.setattr(lengthening, "load", lambda folder, device: "model")
    here = job(options)
    folder = here.work / "seed-0"
    folder.mkdir(parents=True)
    noted = folder.with_name("seed-0.settings.json")
    noted.write_text(json.dumps(here.text | here.training), encoding="utf-8")
    how = {"pretrain_steps": 2400, "pretrain_rows": 8, "pretrain_precision": "float32"}
    (folder / "how.json").write_text(json.dumps(how), encoding="utf-8")
    assert lengthening.pretrained(job(options, precision="bfloat16")) == ("model", how)
    assert "pre-trained before, in float32" in capsys.readouterr().out
    for other in ({"rows": 16}, {"pretrain_steps": 9}):
        with pytest.raises(SystemExit, match="give another --work"):
            lengthening.pretrained(job(options, **other))
    result = {"family": "bert", "seed": 0, "method": "tile", "detail": "", "steps": 0, "loss": {"128-1023": 1.0}} | how
    assert "seed 0 2400 x 8 rows in float32" in tables([result])
