"""What a run reads of its texts: enough rows for each stage, held-out windows from everywhere, nothing in silence."""

import json

import pytest
from typer.testing import CliRunner

from handscroll.base.errors import DataError
from handscroll.cli.main import app
from handscroll.train.rehearse import rehearse
from handscroll.train.start import RunOptions, run_recipe
from handscroll.train.streams import held_out
from tests.text.small import trained
from tests.train.conftest import RECIPE

WORDS = "the window travels along a text that is far longer than the arms of its reader . ".split()


def write(folder, *sizes):
    """Documents of so many words; gives the setting that names them."""
    folder.mkdir()
    for number, size in enumerate(sizes):
        words = [WORDS[(number + place * place) % len(WORDS)] for place in range(size)]
        (folder / f"{number}.txt").write_text(" ".join(words), encoding="utf-8")
    return f"files=['{folder}/*.txt']"


@pytest.fixture
def short(tmp_path):
    """Settings of a run, whose text has one document of several rows and two that are shorter than a row."""
    text, valid = write(tmp_path / "text", 900, 20, 9), write(tmp_path / "valid", 700, 15)
    stages = "stages=[{length=64,rows=4,steps=3,mix={text=1.0}}]"
    return [f"text.{text}", f"validation.{valid}", "data.text.sampling=cyclic", "tokenizer.train.vocab=280", stages]


def test_documents_in_no_row_and_windows_that_are_not_read_are_told_and_kept(recipe, short, tmp_path):
    shown = []
    run_recipe(recipe(*short), tmp_path / "run", RunOptions(show=shown.append))
    kept = json.loads((tmp_path / "run" / "rows.json").read_text())
    (row,) = [one for one in kept["left_out"] if one["where"] == "stages.0, rows 'text'"]
    assert (row["documents"], row["of_documents"]) == (2, 3) and 0 < row["tokens"] < row["of_tokens"]
    assert kept["validation"]["windows"] == 4 < kept["validation"]["of"]
    text = "\n".join(shown)
    assert f"2 of 3 documents ({row['tokens']} of {row['of_tokens']:,} tokens) are in no row: shorter than" in text
    assert f"validation: 4 of {kept['validation']['of']} windows of 64 tokens are read" in text
    assert "validation: 1 of 2 documents" in text and "behind the last whole window" in text


def test_a_plan_tells_it_too(short):
    sets = [word for setting in short for word in ("--set", setting)]
    done = CliRunner().invoke(app, ["plan", "train", str(RECIPE), *sets], catch_exceptions=False)
    assert "2 of 3 documents" in done.stdout and "validation: 4 of" in done.stdout
    done = CliRunner().invoke(app, ["plan", "train", str(RECIPE), *sets, "--json"], catch_exceptions=False)
    assert json.loads(done.stdout)["rows"]["left_out"][0]["documents"] == 2


def test_nothing_is_said_of_texts_that_are_read_whole(recipe, tmp_path):
    shown = []
    settings = recipe("loop.evaluate_every=0", "stages.0.steps=1", "stages.1.steps=1")
    run_recipe(settings, tmp_path / "run", RunOptions(show=shown.append))
    assert len(shown) == 1 and shown[0].startswith("plan:")
    assert json.loads((tmp_path / "run" / "rows.json").read_text()) == {"left_out": [], "validation": None}


def test_held_out_windows_come_from_everywhere(recipe, short):
    """8 of 15 windows were the first eight."""
    settings = recipe(*short, "validation.windows=8", "validation.length=32").validation

    class Plain:
        eos = ()

        class spec:
            reads = "forward"

    held = held_out(settings, trained("bpe"), Plain)
    wanted = [number * held.windows // 8 * 32 for number in range(8)]
    assert held.windows > 8 and [row.start for row in held.rows] == wanted


@pytest.mark.parametrize("mix", ["{text=1.0}", "{text=0.5,copies=0.5}"])
def test_a_stage_whose_rows_would_end_early_is_refused_before_the_run(recipe, mix, tmp_path):
    settings = recipe("data.text.sampling=sliding", "stages.0.steps=5000", f"stages.0.mix={mix}")
    words = r"stages\.0: 5,000 updates of 8 rows need 40,000 rows of 32 tokens, but .* rows 'text', .* steps to [\d,]+"
    with pytest.raises(DataError, match=words):
        run_recipe(settings, tmp_path / "run")
    assert not (tmp_path / "run" / "records.jsonl").exists()
    with pytest.raises(DataError, match=words):
        rehearse(settings)
