"""`handscroll metrics`: scores of a file, and of two against each other, on the command line."""

import json

import pytest
from typer.testing import CliRunner

from handscroll.base.errors import ConfigError, DataError
from handscroll.cli.main import app
from handscroll.metrics import METRICS, labels
from handscroll.metrics.scores import measured

RUN = CliRunner()
TRUE = ["pos", "neg", "neg", "pos", "neg"] * 8
GIVEN = ["pos", "neg", "pos", "pos", "neg"] * 8
OTHER = ["neg", "pos", "pos", "pos", "neg"] * 8


def file(path, **columns):
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def shown(*arguments):
    result = RUN.invoke(app, ["metrics", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return [" ".join(line.split()) for line in result.stdout.splitlines()]


def test_scores_of_labels_with_confusions_and_a_record(tmp_path):
    path = file(tmp_path / "a.jsonl", label=TRUE, prediction=GIVEN)
    head, columns, *rows = shown(path, "--confusion", "--json", tmp_path / "out.json", "--seed", "4")
    assert head == f"{path}: 40 rows, 'label' against 'prediction'"
    assert columns == "metric value 95 % interval better is"
    wanted = measured(labels.accuracy(TRUE, GIVEN), seed=4)
    assert rows[0] == f"accuracy {wanted.value:.3f} {wanted.interval} higher"
    assert [row.split()[0] for row in rows[:3]] == ["accuracy", "f1-macro", "mcc"]
    assert "neg 1.000 0.667 0.800 24 16" in rows and "neg 16 8" in rows and "pos 0 16" in rows
    record = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert record["metrics"]["accuracy"]["low"] == wanted.low and record["seed"] == 4 and record["rows"] == 40


def test_numbers_and_labels_of_a_table_are_read_as_such(tmp_path):
    (tmp_path / "a.csv").write_text("label,prediction\n1,1.5\n2,1.75\n4,4\n", encoding="utf-8")
    rows = shown(tmp_path / "a.csv", "--metric", "mae", "--metric", "rmse")
    assert rows[2].startswith("mae 0.250 ")
    path = file(tmp_path / "b.jsonl", label=[1, 0, 1], prediction=["1", "0", "0"])
    assert shown(path, "--metric", "accuracy")[2].startswith("accuracy 0.667")
    path = file(tmp_path / "spelled.jsonl", label=[1, 0, "pos", " neg"], prediction=[1.0, "0.0", " pos", "neg"])
    assert shown(path, "--metric", "accuracy")[2].startswith("accuracy 1.000")
    chances = [{"1.0": 0.75, "0.0": 0.25}, {"1.0": 0.25, "0.0": 0.75}]
    path = file(tmp_path / "chances.jsonl", label=["1", "0"], prediction=["1.0", "0.0"], probabilities=chances)
    assert [row.split()[1] for row in shown(path)[2:]] == ["1.000", "1.000", "1.000", "0.250"]
    path = file(tmp_path / "c.jsonl", label=[["a"], ["a", "b"]], prediction=[["a"], ["b"]])
    assert [row.split()[0] for row in shown(path)[2:]] == ["accuracy", "f1-micro", "f1-macro"]
    path = file(tmp_path / "d.jsonl", tokens=[10, 20], loss=[20.0, 30.0])
    assert shown(path)[2].startswith("perplexity 5.294")


def chosen(path):
    return [row.split()[0] for row in shown(path)[2:]]


def test_predictions_of_a_run_are_scored_as_what_they_are(tmp_path):
    places = [f"test.csv, row {number}" for number in range(1, 41)]
    chances = [{"pos": 0.75, "neg": 0.25} if one == "pos" else {"pos": 0.25, "neg": 0.75} for one in GIVEN]
    path = file(tmp_path / "a.jsonl", place=places, label=TRUE, reference=TRUE, prediction=GIVEN, probabilities=chances)
    assert chosen(path) == ["accuracy", "f1-macro", "mcc", "ece"]
    assert "pos 0 16" in shown(path, "--confusion")
    assert chosen(file(tmp_path / "b.jsonl", reference=TRUE, prediction=GIVEN)) == ["accuracy", "f1-macro", "mcc"]
    several = file(tmp_path / "c.jsonl", reference=[["a"], ["a", "b"], []], prediction=[["a"], ["b", "a"], []])
    assert shown(several)[2].startswith("accuracy 1.000") and chosen(several) == ["accuracy", "f1-micro", "f1-macro"]
    numbers = file(tmp_path / "d.jsonl", number=[1.0, 2.0, 3.0], reference=[1.0, 2.0, 3.0], prediction=[1.5, 2.0, 2.5])
    assert chosen(numbers) == ["pearson", "spearman", "rmse"]
    (tmp_path / "e.csv").write_text("reference,prediction\n2,1.5\n2,1.75\n", encoding="utf-8")
    assert chosen(tmp_path / "e.csv") == ["rmse"]  # what is constant has no correlation
    answers = {"chosen": ["yes", "no"], "rejected": ["no", "yes"], "margin": [0.5, -0.25]}
    pairs = file(tmp_path / "f.jsonl", **answers, reference=["chosen"] * 2, prediction=["chosen", "rejected"])
    assert chosen(pairs) == ["accuracy"]


def test_texts_are_scored_in_their_language(tmp_path):
    path = file(tmp_path / "a.jsonl", reference=["今天天气好", "我们走吧"], prediction=["今天天气很好", "走吧"])
    head, _, *rows = shown(path)
    assert head.endswith("language zh") and rows[0].startswith("rouge-1 0.788")
    path = file(tmp_path / "b.jsonl", answers=[["Paris", "the city of Paris"]] * 2, prediction=["paris!", ""])
    head, _, *rows = shown(path)
    assert head.endswith("'answers' against 'prediction', language en") and rows[0].startswith("exact-match 0.500")
    assert chosen(file(tmp_path / "d.jsonl", reference=[["a b", "a c"]], prediction=["a b"]))[0] == "rouge-1"
    assert chosen(file(tmp_path / "e.jsonl", reference=["w " * 50] * 4, prediction=["w"] * 4))[0] == "rouge-1"
    with pytest.raises(ConfigError, match="unknown language 'cn'"):
        shown(path, "--language", "cn")


def test_two_systems(tmp_path):
    one = file(tmp_path / "a.jsonl", label=TRUE, prediction=GIVEN)
    two = file(tmp_path / "b.jsonl", label=TRUE, prediction=OTHER)
    _, against, _, *rows = shown(one, "--other", two, "--metric", "accuracy", "--json", tmp_path / "out.json")
    assert against == f"against {two}" and rows[0].startswith("accuracy 0.800 [")
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["metrics"]["accuracy"]
    assert found["difference"]["value"] == pytest.approx(0.4) and found["p"] == pytest.approx(1 / 1001)
    mixed = file(tmp_path / "c.jsonl", label=TRUE[::-1], prediction=OTHER)
    with pytest.raises(DataError, match=r"row 1 and .*row 1 have different references"):
        shown(one, "--other", mixed)
    short = file(tmp_path / "d.jsonl", label=TRUE[:-1], prediction=OTHER[:-1])
    with pytest.raises(DataError, match=r"has 40 rows and .* 39; score the same rows"):
        shown(one, "--other", short)


def test_what_cannot_be_scored_says_what_to_do(tmp_path):
    path = file(tmp_path / "a.jsonl", label=["a", "b"], answer=["a", "b"], prediction=["a", None])
    with pytest.raises(DataError, match=r"both label and answer among the columns .*\(--reference COLUMN\)"):
        shown(path)
    assert shown(path, "--reference", "label", "--metric", "accuracy")
    tuned = file(tmp_path / "b.jsonl", label=["a", "b"], reference=["a", "a"], prediction=["a", "a"])
    told = "\n".join(shown(tuned, "--metric", "accuracy"))  # `reference` wins by its name
    assert "accuracy 1.000" in told
    with pytest.raises(DataError, match="row 2: nothing under 'prediction'"):
        shown(path, "--reference", "label", "--metric", "exact-match")
    with pytest.raises(DataError, match="no column 'lable': did you mean 'label'"):
        shown(path, "--reference", "lable")
    with pytest.raises(DataError, match="none of probabilities among"):
        shown(path, "--reference", "label", "--metric", "ece")
    with pytest.raises(ConfigError, match="--encoder MODEL belong together"):
        shown(path, "--reference", "label", "--metric", "embedding")
    with pytest.raises(ConfigError, match="--confusion is for metrics of labels"):
        shown(path, "--reference", "label", "--prediction", "answer", "--metric", "code-match", "--confusion")


def test_without_a_file_the_metrics_are_listed():
    rows = shown()
    assert all(any(row.startswith(f"{name} ") for row in rows) for name in METRICS)
