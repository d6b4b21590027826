"""The benchmark in folds judges every row once, by what did not learn from it; processes can share its work."""

import csv

import pytest

from bench import folds


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["label"]) for row in csv.DictReader(file)]


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """A function that runs the benchmark on 60 made-up questions, and the rows that it asked a model to learn."""
    data, work = tmp_path / "data", tmp_path / "work"
    (data / "cls_en").mkdir(parents=True)
    words = [f"{name} number {number} {'x' * number}" for number in range(30) for name in ("who", "where")]
    lines = [f"{'HUM' if text.startswith('who') else 'LOC'}\t{text}\n" for text in words]
    for name in ("trec", "sst2"):
        (data / "cls_en" / f"{name}_train.tsv").write_text("".join(lines), encoding="utf-8")
    learned = []

    def tuning(options, way, seed, folder, train, test):
        learned.append(rows(train))
        return ["HUM" if way == "full" else label for _, label in rows(test)]

    monkeypatch.setattr(folds, "tuned", tuning)
    monkeypatch.setattr(folds, "peer", lambda *given: [f"by {given[1]}" for _ in rows(given[-1])])

    def run(*more):
        monkeypatch.setattr("sys.argv", ["folds", str(data), "--minilm", "encoder", "--work", str(work), *more])
        folds.main()

    return run, learned, work


def test_every_row_is_judged_once_by_what_did_not_learn_it(bench, capsys):
    run, learned, work = bench
    run("--folds", "3")
    judged = [rows(work / f"fold-{number}" / "test.csv") for number in range(3)]
    assert len({row for part in judged for row in part}) == sum(map(len, judged)) == 60
    assert len(learned) == 3
    for own, others in zip(judged, learned, strict=True):
        assert not set(own) & set(others) and len(own) + len(others) == 60
    shown = capsys.readouterr().out
    assert "| MiniLM, full | 0.500 [" in shown and "| 60 |" in shown


def test_two_processes_share_the_folds_and_the_last_one_shows_all(bench, capsys):
    run, learned, _ = bench
    run("--folds", "3", "--take", "2")
    assert "1 of 3 folds are done" in capsys.readouterr().out
    run("--folds", "3", "--take", "0,1")
    assert "3 of 3 folds are done" in capsys.readouterr().out and len(learned) == 3


def test_ways_of_another_data_set_are_compared_over_all_folds(bench, capsys):
    run, learned, work = bench
    run("--folds", "3", "--only", "sst2", "--ways", "full,last")
    shown = capsys.readouterr().out
    assert "| MiniLM, full but the token table | 1.000 [" in shown and len(learned) == 6
    assert "MiniLM, full but the token table - MiniLM, full: +0.500 [" in shown
    assert "by fold: 1.000, 1.000, 1.000" in shown and not list(work.glob("*/tfidf.said.json"))


def test_the_tool_beside_ours_is_judged_on_the_same_rows(bench, capsys):
    run, learned, _ = bench
    run("--folds", "3", "--ways", "last,peer")
    shown = capsys.readouterr().out
    assert "| MiniLM, full, by transformers | 0.000 [" in shown and len(learned) == 3
    assert "MiniLM, full, by transformers - MiniLM, full but the token table: -1.000 (" in shown


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--folds", "1"], "give 2 or more"),
        (["--take", "0,10"], "the folds are 0 to 9"),
        (["--take", "-1"], "has -1"),
        (["--ways", "full,most"], "--ways has most"),
        (["--only", "poems"], "invalid choice"),
    ],
)
def test_folds_that_do_not_exist_are_refused(bench, capsys, more, message):
    run, learned, work = bench
    with pytest.raises(SystemExit):
        run(*more)
    assert message in capsys.readouterr().err and not learned and not work.exists()


def test_folds_of_other_settings_are_not_joined(bench):
    run, _, _ = bench
    run("--folds", "3", "--take", "0")
    with pytest.raises(SystemExit, match="give another --work"):
        run("--folds", "4", "--take", "1")
