"""One page for two runs, and the sections on long tasks."""

import json
import re

import pytest
from typer.testing import CliRunner

from handscroll.base.errors import CheckpointError, DataError
from handscroll.cli.main import app
from handscroll.report import evaluation_page, render
from handscroll.report.changes import changes_section
from handscroll.report.runs import names_of, read_run, side_by_side
from tests.report.material import DOCTOR, EXPOSURE, LEAK, LENGTH, RULER, RUNTIMES, VIEWS, needle, perplexity, tasks


def test_long_tasks_show_scores_what_was_asked_and_the_plan():
    html = render(evaluation_page([tasks()]))
    for word in (
        "0.500 [0.400, 0.600]", "20 questions were answered. Each was asked about the whole of its text.",
        "up to 4K", "Plan and what happened", "4,000 of 4,000", "abababababababab", "handscroll evaluate tasks tiny",
        "1.6 min",
    ):  # fmt: skip
        assert word in html, word
    parts = render(evaluation_page([tasks(cut=7, left_out=[{"place": "row 9", "tokens": 9000}])]))
    assert "Long tasks: not the whole texts" in parts and "7 of them about documents without their middle" in parts
    assert "1 were left out" in parts and "row 9" in parts


def test_two_runs_stand_beside_each_other(tmp_path):
    runs = []
    for name, value in (("old", 0.25), ("new", 0.5)):
        records = [perplexity("exact"), perplexity("window"), needle("needle"), tasks("x", value)]
        runs.append(tmp_path / f"{name}.jsonl")
        runs[-1].write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    both = side_by_side(*map(read_run, runs), names_of(runs))
    assert [one["label"] for one in both] == [
        "old, exact", "old, window", "old", "old", "new, exact", "new, window", "new", "new",
    ]  # fmt: skip
    html = render(evaluation_page(both))
    assert "+0.250" in html and "All numbers: old, exact" in html and "All numbers: new<" in html
    out = [str(tmp_path / name) for name in ("page.html", "page.json")]
    done = CliRunner().invoke(app, ["report", *map(str, runs), "--out", out[0], "--json", out[1], "--language", "zh"])
    assert done.exit_code == 0, done.output
    assert "What changed" not in html
    page, content = [(tmp_path / name).read_text(encoding="utf-8") for name in ("page.html", "page.json")]
    assert (
        "变化" in page
        and "变好" in page
        and "长文本任务" in page
        and len(page) < 2_000_000
        and len(json.loads(content)["records"]) == 8
    )


def test_the_last_record_of_a_file_counts_without_its_newline(tmp_path):
    lines = [json.dumps(one) for one in (tasks("x"), RULER)]
    (tmp_path / "two.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert [one["kind"] for one in read_run(tmp_path / "two.jsonl")] == ["tasks", "ruler"]
    (tmp_path / "records.jsonl").write_text(f"{lines[0]}\n{lines[1][:20]}", encoding="utf-8")
    assert [one["kind"] for one in read_run(tmp_path)] == ["tasks"]
    with pytest.raises(CheckpointError, match=r"records\.jsonl, line 2"):
        read_run(tmp_path / "records.jsonl")


def test_runs_of_models_with_other_trained_lengths_have_no_common_line():
    records = [perplexity("a", trained=1024), perplexity("b", model="other", trained=2048)]
    assert "trained 1K" not in render(evaluation_page(records))


def test_names_tell_runs_apart(tmp_path):
    assert names_of([tmp_path / "a" / "r.jsonl", tmp_path / "b" / "r.jsonl"]) == ["a/r", "b/r"]
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="no records"):
        read_run(tmp_path / "empty.jsonl")
    with pytest.raises(CheckpointError, match=r"none\.jsonl"):
        read_run(tmp_path / "none.jsonl")
    done = CliRunner().invoke(app, ["report", *["x.jsonl"] * 3])
    assert done.exit_code != 0


def test_how_far_a_model_reaches_with_published_models_beside_it():
    html = render(evaluation_page([RULER]))
    for word in (
        "4K (2K to 4K)", "Llama 3.1 8B", "arXiv:2404.06654", "threshold 85.6", "95% [90%, 97%]",
        "task 3 does not fit into 8K: it needs 9,000 tokens",
    ):  # fmt: skip
        assert word in html, word
    for other in ({"tasks": ["a"], "scores": [[1.0, 1.0, 1.0]]}, {"language": "zh"}):
        assert "Llama 3.1 8B" not in render(evaluation_page([RULER | other]))
    with pytest.raises(DataError, match="13 rows"):
        evaluation_page([RULER | {"scores": [[1.0, 1.0, 1.0]]}])
    assert "&lt;512 (&lt;512 to 512)" in render(evaluation_page([LENGTH]))
    assert "100 tokens were read; the whole grid takes 700." in render(evaluation_page([LENGTH]))


def test_views_packing_and_the_doctor_have_their_sections():
    html = render(evaluation_page([VIEWS, LEAK, DOCTOR]))
    for word in (
        "The context beyond 256 tokens saves whole +0.250 nats per token.", "+0.0200 [+0.0100, +0.0300]",
        "Each of 2 packed documents has the numbers that it has alone.", "1 of 2 checks found something wrong",
    ):  # fmt: skip
        assert word in html, word
    assert html.index("ignored set it") < html.index("as it should be")
    assert "see each other: 1 differ" in render(evaluation_page([LEAK | {"said": ["a leak"]}]))


def test_views_show_repeated_text_and_each_window():
    html = render(evaluation_page([VIEWS]))
    for word in ("repeated, 64 to 127 back", "[0.850, 2.340]", "turtle.py@5,120", "part 4 of 4", "with 256 tokens"):
        assert word in html, word
    cells = re.findall(r">([^<]+)</td>", html[html.index("turtle.py@5,120") :])
    assert cells == ["2.000", "1.500", "2.000", "2.250", "–"]
    with pytest.raises(DataError, match="fresh"):
        evaluation_page([VIEWS | {"repeats": {"run": 8, "repeated": {"count": 1}}}])


def test_exposure_is_shown_without_the_secrets():
    html = render(evaluation_page([EXPOSURE]))
    assert "2 of 20" in html and "3.3 of 4.3" in html and "The code is {{…}}." in html and "48151623" not in html


def test_no_secret_leaves_the_records_by_the_command_that_ranked_it(tmp_path):
    """Records of earlier versions have the whole command."""
    made = {"command": "handscroll evaluate exposure m --secret 'The code is {{48151623}}.'", "seconds": 1.0}
    (tmp_path / "x.jsonl").write_text(json.dumps(EXPOSURE | {"made": made}) + "\n", encoding="utf-8")
    words = [str(tmp_path / "x.jsonl"), "--out", str(tmp_path / "x.html"), "--json", str(tmp_path / "x.json")]
    told = CliRunner().invoke(app, ["report", *words])
    assert told.exit_code == 0, told.output
    for name in ("x.html", "x.json"):
        shown = (tmp_path / name).read_text(encoding="utf-8")
        assert "48151623" not in shown and "The code is {{…}}." in shown, name
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["records"][0]["secrets"][0]["rank"] == 2


def test_two_runtimes_are_shown_by_position():
    html = render(evaluation_page([RUNTIMES]))
    assert "own a leaves GGUF b at token 40 by more than 0.05 nats." in html and "1 to 63" in html and "0.75" in html
    assert "agree on all 64 tokens" in render(evaluation_page([RUNTIMES | {"first": None}]))


def test_what_lm_eval_was_given_shows_its_certificate():
    asked = {"kind": "harness", "model": "tiny", "requests": "loglikelihood", "count": 24}
    html = render(evaluation_page([asked | {"certificate": {"offered": 1000, "seen": 1000, "sha256": "cd" * 32}}]))
    assert "1,000 of 1,000" in html and "cdcdcdcdcdcdcdcd" in html


def test_what_became_worse_for_sure_stands_first():
    old = [perplexity("exact"), tasks("x", 0.8), needle("needle"), RULER]
    new = [
        perplexity("exact", loss=[3.0, 2.5, 2.25, 2.0]),
        tasks("y", 0.3),
        needle("needle"),
        RULER | {"average": [0.9, 0.94, 0.5], "low": [0.85, 0.9, 0.4], "high": [0.95, 0.97, 0.6]},
    ]
    (section,) = changes_section(old, new, ["old", "new"])
    rows = [(row[0], row[-1]) for row in section.items[0].cells]
    assert rows[:2] == [("RULER at 2K", "worse"), ("loogle, token-f1", "worse")] and len(rows) == 7
    assert ("loss in the last quarter of 4K, exact", "better") in rows and ("RULER at 8K", "the same") in rows
    assert ("RULER at 4K", "no sure difference") in rows and section.lead.startswith("2 of 7 numbers became worse")
    assert changes_section([LEAK], [LEAK], ["a", "b"]) == []


def test_losses_of_other_texts_are_not_compared():
    old = [perplexity(text_sha256="ab"), tasks("x", 0.8)]
    new = [perplexity(text_sha256="cd", loss=[3.0, 2.5, 2.25, 4.0]), tasks("x", 0.3)]
    (section,) = changes_section(old, new, ["old", "new"])
    verdicts = {row[0]: row[-1] for row in section.items[0].cells}
    assert verdicts["loss in the last quarter of 4K, after"] == "other text"
    assert section.lead.startswith("1 of 2 numbers became worse") and section.lead.endswith("not better or worse: 1.")
    (alone,) = changes_section(old[:1], new[:1], ["old", "new"])
    assert alone.lead == "Measured in another way, and so not better or worse: 1."
    (same,) = changes_section([perplexity(text_sha256="ab")], [perplexity(loss=[3.0, 2.5, 2.25, 4.0])], ["a", "b"])
    assert [row[-1] for row in same.items[0].cells] == ["worse"]


def changed(old, new):
    """The rows of what changed: what was measured, both numbers, and the verdict."""
    (section,) = changes_section(old, new, ["old", "new"])
    return [(row[0], row[1], row[2], row[-1]) for row in section.items[0].cells], section.lead


WORSE = [3.0, 2.5, 2.25, 4.0]


def test_records_of_one_label_are_paired_by_what_they_measured():
    old = [perplexity("x", length=1024), perplexity("x"), needle("x"), needle("x", lengths=[1024, 8192])]
    new = [perplexity("x", loss=WORSE), perplexity("x", length=1024, loss=WORSE), needle("x")]
    rows, lead = changed(old, new)
    assert [row[0] for row in rows if row[-1] == "worse"] == [
        "loss in the last quarter of 1K, x",
        "loss in the last quarter of 4K, x",
    ]
    assert rows[-1][1:] == ("0.917", "–", "only in old") and "in one run only: 1." in lead
    (lone,), lead = changed([RULER | {"lengths": [2048, 4096, 8192]}] * 2, [RULER])[0][3:4], ""
    assert lone[-1] == "only in old"


def test_what_was_measured_in_another_way_is_neither_better_nor_worse():
    low = {"average": [0.5, 0.5, 0.5], "low": [0.4, 0.4, 0.4], "high": [0.6, 0.6, 0.6]}
    ruler = RULER | {"layout": "shared", "template": "base"}
    for other, verdict in (
        ({"layout": "published"}, "other layout"),
        ({"language": "zh"}, "other language"),
        ({"template": "chat"}, "other template"),
        ({"tasks": [f"job {n}" for n in range(13)]}, "other tasks"),
        ({"layout": "published", "template": "chat"}, "other layout and template"),
    ):
        rows, lead = changed([ruler], [ruler | low | other])
        assert [row[-1] for row in rows][:2] == [verdict] * 2, other
        assert "became worse" not in lead
    assert [row[-1] for row in changed([ruler], [RULER | low | {"samples": 500}])[0]][:2] == ["worse"] * 2
    for other, verdict in (({"format": "a word"}, "other format"), ({"samples": 2}, "other samples")):
        assert changed([needle("x")], [needle("x", accuracy=[[0.5, 0.25], [0.0, None]], **other)])[0][0][-1] == verdict
    (row,) = changed([tasks("x", 0.8) | {"shots": 0}], [tasks("x", 0.3) | {"shots": 2}])[0][:1]
    assert row[-1] == "other shots"


def test_the_nearer_of_several_records_is_the_one_compared():
    both = [RULER | {"layout": "shared"}, RULER | {"layout": "published"}]
    worse = {"average": [0.5, 0.5, 0.5], "low": [0.4, 0.4, 0.4], "high": [0.6, 0.6, 0.6]}
    rows, _ = changed(both, [both[1] | worse, both[0]])
    assert ("RULER at 2K, published", "1.000", "0.500", "worse") in rows and len(rows) == 6
    assert ("RULER at 2K, shared", "1.000", "1.000", "the same") in rows
    labelled = [RULER | {"label": "a"}, RULER | {"label": "b"}]
    rows, _ = changed(labelled, [labelled[1] | worse, labelled[0]])
    assert ("RULER at 2K, b", "1.000", "0.500", "worse") in rows and (
        "RULER at 2K, a",
        "1.000",
        "1.000",
        "the same",
    ) in rows


def test_a_length_or_a_metric_of_one_run_alone_is_told():
    shorter = RULER | {
        "lengths": [2048],
        "scores": [[1.0]] * 13,
        "average": [1.0],
        "low": [0.98],
        "high": [1.0],
        "tasks_counted": [13],
        "unfit": [],
    }
    models = [RULER | {"model": "a"}, RULER | {"model": "b"}]
    assert [row[0] for row in changed(models, models[::-1])[0]][:4:3] == ["RULER at 2K, a", "RULER at 2K, b"]
    rows, lead = changed([RULER], [shorter])
    assert [row[-1] for row in rows] == ["the same", "only in old", "only in old"]
    assert lead == "0 of 1 numbers became worse from old to new. Measured in one run only: 2."
    old, new = tasks("x"), tasks("x")
    del new["tasks"][0]["scores"]["exact-match"]
    assert [row[-1] for row in changed([old], [new])[0]] == ["the same", "only in old"]


def test_what_changed_has_no_english_in_chinese():
    old = [RULER | {"layout": "shared"}, needle("x"), perplexity("x", text_sha256="ab"), tasks("x")]
    new = [
        RULER | {"layout": "published", "language": "zh"},
        needle("x", format="a word"),
        perplexity("x", text_sha256="cd"),
    ]
    (section,) = changes_section(old, new, ["旧", "新"], "zh")
    verdicts = {row[-1] for row in section.items[0].cells}
    assert verdicts == {"布局和语言不同", "格式不同", "文本不同", "只在 旧 中"} and "只在" in section.lead
