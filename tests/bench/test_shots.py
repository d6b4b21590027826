"""`bench.shots` shows and tunes on the same examples, and reads all of them for each number."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import shots
from handscroll.base.errors import CapacityError, DataError
from handscroll.data.table.table import Table


@pytest.fixture
def seen(monkeypatch, tmp_path, capsys):
    """What a run of 1, 2, 4 and 8 shots showed, and what it tuned on; 1 is too few to tune on, 8 too many to show."""
    rows = "".join(f"{number % 2}\ttext {number}\n" for number in range(40))
    (tmp_path / "train.tsv").write_text(rows, encoding="utf-8")
    (tmp_path / "test.tsv").write_text("0\tnew a\n1\tnew b\n", encoding="utf-8")
    found = {"shown": [], "tuned": [], "stores": []}
    score = SimpleNamespace(value=0.5)

    class Asked:
        def read(self, table, columns):
            return SimpleNamespace(examples=tuple(record.get("text") for record in table))

        def settled(self, examples, lm):
            return self

        def prompted(self, lm, tests, how):
            if how.shots == 8:
                raise CapacityError("the prompt has too many tokens")
            found["shown"].append(list(how.examples))
            found["stores"].append(how.store)
            assert (how.shots, how.choose) == (len(how.examples), "first") and tests == ("new a", "new b")
            return ()

        def score(self, tests, given):
            return {"accuracy": score}

    def finetune(recipe, folder, options):
        read = {name: getattr(recipe.data, name)[0] for name in ("train", "test")}
        lines = {name: Path(path).read_text(encoding="utf-8").splitlines() for name, path in read.items()}
        rows = {name: [json.loads(line)["text"] for line in found] for name, found in lines.items()}
        assert rows["test"] == ["new a", "new b"] and recipe.data.most == recipe.data.held_out == 0
        found["tuned"].append(rows["train"])
        if len(rows["train"]) == 1:
            raise DataError("all 1 examples have the label '0'")
        for _ in range(3):
            options.on_record({})
        return SimpleNamespace(progress=SimpleNamespace(step=3), scores={"test": {"accuracy": score}})

    monkeypatch.setattr(shots, "load", lambda source: None)
    monkeypatch.setattr(shots, "task_from", lambda values: Asked())
    monkeypatch.setattr(shots, "Store", str)
    monkeypatch.setattr(shots, "finetune", finetune)
    ticks = iter(range(10_000))
    monkeypatch.setattr(shots, "monotonic", lambda: next(ticks))
    files = [str(tmp_path / name) for name in ("train.tsv", "test.tsv")]
    command = ["shots", "model", "classify", *files, "--counts", "8,0,1,2,4", "--names", "label,text"]
    monkeypatch.setattr("sys.argv", command)
    shots.main()
    return found | {"said": capsys.readouterr().out}


def test_the_lora_learns_from_the_examples_that_the_prompts_show(seen):
    none, *shown = seen["shown"]
    assert none == [] and [len(one) for one in shown] == [1, 2, 4]
    assert seen["tuned"][1:] == [shown[1], shown[1], shown[2], shown[2]]  # a trial, then the run
    assert shown[2][:2] == shown[1] and shown[1][:1] == shown[0], "a larger number begins with the smaller one"


def test_examples_that_cannot_be_tuned_on_do_not_end_the_run(seen):
    assert seen["tuned"][0] == seen["shown"][1] and "1 examples, no LoRA: all 1 examples" in seen["said"]


def test_examples_that_do_not_fit_are_told_after_the_other_results(seen):
    *_, refused, last = seen["said"].splitlines()
    assert refused == "    8 shots: the prompt has too many tokens" and last.startswith("a LoRA overtakes at")


def test_each_number_of_shots_has_a_store_of_its_own(seen):
    assert len(set(seen["stores"])) == 4


def test_the_chosen_rows_are_those_of_a_random_order():
    table = Table.of([{"text": str(number)} for number in range(100)])
    few, many = ([record.get("text") for record in shots.chosen(table, count)] for count in (4, 64))
    assert many[:4] == few and few != ["0", "1", "2", "3"] and len(set(many)) == 64


def test_more_shots_than_there_are_rows_are_refused_before_the_model_is_loaded(monkeypatch, tmp_path):
    (tmp_path / "rows.tsv").write_text("".join(f"{number % 2}\ttext {number}\n" for number in range(10)))
    monkeypatch.setattr(shots, "load", lambda source: pytest.fail("it loaded the model first"))
    command = ["shots", "model", "classify", *[str(tmp_path / "rows.tsv")] * 2, "--names", "label,text"]
    monkeypatch.setattr("sys.argv", [*command, "--counts", "4,256,16"])
    with pytest.raises(SystemExit, match=r"--counts 256: .*rows\.tsv has 10 rows"):
        shots.main()
