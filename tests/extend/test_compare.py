"""The comparison of methods: the same text for all, the same budget, how sure the ranking is, a page of it."""

import json

import pytest
from typer.testing import CliRunner

import handscroll
from handscroll.base.errors import ConfigError, DataError
from handscroll.cli.extend import show_comparison
from handscroll.cli.main import app
from handscroll.extend.compare import Comparing
from handscroll.extend.extend import extension
from handscroll.report import evaluation_page, render
from handscroll.report.records import parse_records
from tests.conftest import ROOT

TEXT = [ROOT / "handscroll" / "lm.py", ROOT / "handscroll" / "nn" / "attend.py"]
SMALL = Comparing(seeds=2, windows=2, readings=4, needles=0)


@pytest.fixture(scope="module")
def lm(tiny_folder):
    return handscroll.load(tiny_folder)


@pytest.fixture(scope="module")
def made(lm):
    return extension(lm, 128, text=TEXT, measured=128, compare=SMALL)


def test_every_method_reads_the_same_windows(made):
    lines = made.comparison.lines
    assert {line.standing.candidate.method for line in lines} == {"none", "pi", "ntk", "dynamic-ntk", "yarn", "llama3"}
    assert len(made.comparison.samples) == 4 and all(len(line.standing.trials) == 4 for line in lines)
    offsets = [(one.source, one.offset) for one in made.comparison.samples]
    assert len(set(offsets)) == 4, "windows of seeds do not overlap"
    assert sorted(line.score for line in lines) == [line.score for line in lines]
    assert made.candidate is lines[0].standing.candidate


def test_how_sure_the_ranking_is(made):
    lines = made.comparison.lines
    assert sum(line.first for line in lines) == pytest.approx(1.0)
    assert all(line.low <= line.standing.long <= line.high for line in lines)
    assert all(0.0 <= line.ahead <= 1.0 for line in lines[:-1]) and lines[-1].ahead is None
    for line in lines:
        assert sum(line.by_seed) / 2 == pytest.approx(line.standing.long)


def test_the_settings_of_each_method_are_chosen_with_as_many_readings(made):
    """A method without settings chooses nothing; the others read at most so many windows, or each candidate once."""
    chosen = {line.standing.candidate.method: line.chosen_by for line in made.comparison.lines}
    assert chosen["pi"] == chosen["none"] == 0 and 0 < chosen["ntk"] <= 4 * 128


def test_records_make_a_page(made):
    records = json.loads(json.dumps(made.comparison.records()))
    kinds = [type(one).__name__ for one in parse_records(records)]
    assert kinds[0] == "Compared" and kinds.count("Perplexity") == 6
    page = render(evaluation_page(records))
    assert "Methods compared with several seeds" in page and "resamples" in page
    for row, loss in zip(records[0]["rows"], [3.0, 2.99, 3.1], strict=False):
        row["long_loss"] = loss
    assert "has to be 0.02 nats better" in render(evaluation_page(records[:1]))
    records[0]["rows"][1]["long_loss"] = 3.01
    records[0]["rows"] = records[0]["rows"][:3]
    assert "nats better" not in render(evaluation_page(records[:1]))


def test_one_window_tells_no_interval(lm, capsys):
    found = extension(lm, 128, text=TEXT, compare=Comparing(seeds=1, windows=1, readings=4, needles=0)).comparison
    assert all((line.low, line.high, line.first, line.ahead) == (None,) * 4 for line in found.lines)
    show_comparison(found)
    assert "resamples" not in capsys.readouterr().out
    records = json.loads(json.dumps(found.records()))
    for row in records[0]["rows"]:
        row |= {"low": 1.0, "high": 1.0, "first": 1.0, "ahead": 1.0}  # as an earlier version wrote them
    for language, said in (("en", "one window does not tell how sure that is"), ("zh", "仅有一个窗口")):
        page = render(evaluation_page(records, language=language))
        assert said in page and "resamples" not in page and "重抽样" not in page and "1 windows" not in page


def test_too_little_text_is_refused(lm):
    with pytest.raises(DataError, match="--seeds"):
        extension(lm, 128, text=TEXT[:1], compare=Comparing(seeds=500))
    with pytest.raises(ConfigError, match="--text"):
        extension(lm, 128, compare=SMALL)


def test_the_command_writes_the_best_and_the_page(tiny_folder, tmp_path):
    command = ["extend", str(tiny_folder), "--to", "128", "--compare", "--seeds", "2", "--needles", "1"]
    command += ["--measured", "128", "--out", str(tmp_path / "longer")]
    done = CliRunner().invoke(app, [*command, *(f"--text={path}" for path in TEXT)])
    assert done.exit_code == 0, done.output
    assert "beats" in done.output and "comparison.html" in done.output
    kept = tmp_path / "longer" / "comparison.jsonl"
    records = [json.loads(line) for line in kept.read_text().splitlines()]
    assert records[0]["kind"] == "comparison" and records[0]["rows"][0]["needles"] is not None
    assert records[0]["made"]["command"].startswith("handscroll")
    again = CliRunner().invoke(app, ["report", str(kept), "--out", str(tmp_path / "again.html")])
    assert again.exit_code == 0, again.output
    assert handscroll.load(tmp_path / "longer").context == 128
    idle = CliRunner().invoke(app, ["extend", str(tiny_folder), "--to", "128", "--seeds", "2", "--out", "x"])
    assert isinstance(idle.exception, ConfigError) and "--compare" in str(idle.exception)
