"""The benchmarks of labels take up what they kept under the same settings alone, and refuse options that do nothing."""

import json
from argparse import Namespace
from types import SimpleNamespace

import pytest

from bench import augment, far_labels, labels
from handscroll.data.table.read import read_table
from tests.conftest import shared
from tests.tasks.chats import saved
from tests.tasks.material import table, tiny


@pytest.fixture
def tune(monkeypatch, tmp_path):
    """A function that runs `bench.labels` on made-up data, and the epochs and shares of what it tuned."""
    data, work = tmp_path / "data", tmp_path / "work"
    (data / "cls_en").mkdir(parents=True)
    for name in ("sst2_train.tsv", "sst2_dev.tsv"):
        rows = "".join(f"{number % 2}\ttext {name} {number}\n" for number in range(20))
        (data / "cls_en" / name).write_text(rows, encoding="utf-8")
    tuned = []

    def tuning(options, way, seed, folder, train, test):
        tuned.append((way, options.epochs, options.held_out))
        return ["1"] * 20

    monkeypatch.setattr(labels, "tuned", tuning)

    def run(*more):
        command = ["labels", str(data), "--only", "sst2", "--work", str(work), *more]
        monkeypatch.setattr("sys.argv", command)
        labels.main()

    return run, tuned


@pytest.mark.parametrize(("way", "result", "held_out"), [("full", "best", 0.1), ("final", "last", 0)])
def test_a_way_keeps_the_weights_that_it_says(monkeypatch, tmp_path, way, result, held_out):
    begun = []
    monkeypatch.setattr(
        labels, "finetune", lambda recipe, folder, options: begun.append(recipe) or SimpleNamespace(scores={})
    )
    options = Namespace(minilm="encoder", qwen="", epochs=None, held_out=0.1, threads=0)
    with pytest.raises(SystemExit, match="stopped"):
        labels.tuned(options, way, 0, tmp_path, tmp_path / "train.csv", tmp_path / "test.csv")
    assert (begun[0].tuning.result, begun[0].data.held_out) == (result, held_out)


@pytest.mark.parametrize("more", [["--epochs", "5"], ["--held-out", "0"], ["--minilm", "another"]])
def test_a_result_of_other_settings_is_not_shown_as_that_of_these(tune, more):
    run, tuned = tune
    given = ["--ways", "majority,full", "--minilm", "encoder"]
    run(*given)
    run(*given)
    assert tuned == [("full", None, 0.1)]
    with pytest.raises(SystemExit, match="give another --work"):
        run(*given, *more)


def test_results_of_other_settings_are_refused_before_the_first_one_is_made(tune, tmp_path):
    run, tuned = tune
    run("--ways", "full", "--minilm", "encoder")
    with pytest.raises(SystemExit, match="give another --work"):
        run("--ways", "majority,lora,full", "--minilm", "encoder", "--epochs", "5")
    assert len(tuned) == 1 and not (tmp_path / "work" / "sst2" / "majority-0.said.json").exists()


def test_the_way_out_that_a_refusal_names_leads_out(tune, tmp_path):
    """A run that stands beside a result is named too: with other settings it would be refused after hours."""
    run, tuned = tune
    folder, given = tmp_path / "work" / "sst2", ["--ways", "full", "--minilm", "encoder"]
    run(*given)
    (folder / "full-0").mkdir()
    (folder / "full-0.said.json").unlink()
    with pytest.raises(SystemExit, match=r"full-0 was begun with .*remove it$"):
        run(*given, "--epochs", "5")
    (folder / "full-0").rmdir()
    run(*given, "--epochs", "5")
    assert tuned == [("full", None, 0.1), ("full", 5.0, 0.1)]


def test_the_table_tells_other_epochs(tune, capsys):
    run, _ = tune
    run("--ways", "majority,full,lora", "--minilm", "encoder", "--epochs", "5", "--held-out", "0")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert sum(", 5 epochs, 0 held out" in line for line in lines) == 2


@pytest.mark.parametrize("more", [["--held-out", "0"], ["--epochs", "2"], ["--seeds", "0,1"]])
def test_options_of_tuning_are_refused_where_nothing_is_tuned(tune, capsys, more):
    run, _ = tune
    with pytest.raises(SystemExit):
        run("--ways", "majority,tfidf", *more)
    assert f"{more[0]} is for the ways lstm, head" in capsys.readouterr().err


@pytest.fixture
def change(monkeypatch, tmp_path):
    """A function that runs `bench.augment` on made-up answers, and the runs that it tuned."""
    monkeypatch.setattr(augment, "prepare", lambda one, folder, data: (tmp_path / "train", tmp_path / "test"))
    tuned = []

    def finetune(recipe, run, options):
        tuned.append(run.name)
        run.mkdir(parents=True)
        lines = [json.dumps({"prediction": "1", "reference": "1"})] * 2
        (run / "test.predictions.jsonl").write_text("\n".join(lines), encoding="utf-8")
        return SimpleNamespace(scores={"test": {}})

    monkeypatch.setattr(augment, "finetune", finetune)
    monkeypatch.setattr(augment.TuningRecipe, "parse", lambda values, name: values)

    def run(**more):
        given = {
            "minilm": "encoder",
            "fill": "fill",
            "translator": "chat",
            "seeds": "0",
            "work": tmp_path / "work",
        } | more
        words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        monkeypatch.setattr("sys.argv", ["augment", str(tmp_path), *words])
        augment.main()

    return run, tuned


@pytest.mark.parametrize(
    "other", [{"epochs": 3}, {"minilm": "another"}, {"fill": "another"}, {"translator": "another"}]
)
def test_a_run_with_changed_copies_counts_for_its_settings_alone(change, other):
    run, tuned = change
    run(seeds="1")
    run(seeds="1")
    assert len(tuned) == 5
    with pytest.raises(SystemExit, match="give another --work"):
        run(seeds="0,1", **other)
    assert len(tuned) == 5, "it is refused before anything is tuned"


def test_ways_of_a_model_are_left_out_without_it_and_told(change, capsys):
    run, tuned = change
    run(fill="", translator="chat")
    assert tuned == [f"augment-{way}-300-0" for way in ("as-they-are", "swap", "delete", "translate")]
    assert "replace: left out, since --fill names no model" in capsys.readouterr().out


@pytest.mark.parametrize("other", [{"logs": 9}, {"tests": 9}, {"seed": 1}, {"minilm": "another"}, {"epochs": 2}])
def test_the_systems_of_one_table_are_of_the_same_settings(tmp_path, other):
    given = {"work": tmp_path, "logs": 160, "tests": 200, "seed": 0, "minilm": "encoder", "epochs": 4.0}
    for _ in range(2):
        far_labels.settle(Namespace(**given), ["whole"])
    (tmp_path / "whole").mkdir()
    (tmp_path / "test.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(SystemExit, match="give another --work"):
        far_labels.settle(Namespace(**given | other), ["cut"])


def test_the_table_of_far_labels_shows_what_calling_everything_scores(tmp_path):
    tiny(tmp_path / "single" / "model")
    far = "w20 " * 600
    logs = [
        {"text": far + "w21", "label": ["person"], "places": {"person": len(far)}},
        {"text": "w20 w21", "label": ["place"], "places": {"place": 4}},
    ]
    said = [{"prediction": ["person"]}, {"prediction": ["number"]}]
    for path, rows in (("test.jsonl", logs), ("whole/test.predictions.jsonl", said)):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    lines = far_labels.table(Namespace(work=tmp_path)).splitlines()
    every, whole = (line.split(" | ") for line in lines[2:4])
    assert every[0] == f"| {far_labels.EVERY}" and every[1].startswith("0.500")  # two of six calls are right
    assert every[2].startswith("1.000") and every[3].startswith("1.000")
    assert whole[1].startswith("0.500") and whole[2].startswith("0.000") and whole[3].startswith("1.000")
    assert lines[-1] == "2 test logs"


def test_the_peer_holds_no_rows_out(tune, capsys):
    run, _ = tune
    with pytest.raises(SystemExit):
        run("--ways", "peer", "--minilm", "encoder", "--held-out", "0")
    assert (
        "--held-out is for the ways lstm, head, lora, full, last, qwen, and peer holds out nothing"
        in capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        run("--ways", "tfidf", "--seeds", "1")
    assert "and tfidf tunes nothing" in capsys.readouterr().err


def test_a_model_that_is_prompted_answers_with_the_labels_of_the_data(tune, tmp_path, monkeypatch):
    """Its words stand for them; the examples in the prompt are training rows."""
    run, tuned = tune
    model, asked = saved(tmp_path / "model"), []
    own = labels.Prompting.chosen
    monkeypatch.setattr(labels.Prompting, "chosen", lambda *given: asked.append(own(*given)) or asked[-1])
    monkeypatch.setattr(labels, "SHOTS", {"zero": 0, "few": 3})
    run("--ways", "zero,few", "--qwen", str(model))
    made = [json.loads((tmp_path / f"work/sst2/{way}-0.said.json").read_text()) for way in ("zero", "few")]
    assert not tuned and all(len(said) == 20 and set(said) <= {"0", "1"} for said in made)
    assert [len(shots) for shots in asked] == [0] * 20 + [3] * 20
    assert all("train" in shot["text"] for shot in asked[-1])


@pytest.mark.parametrize("name", labels.DATA)
def test_each_label_of_the_data_has_a_word(name):
    one = labels.DATA[name]
    found = {record.get("label") for record in read_table([str(shared(one.train))], one.names)}
    assert found == {str(number) for number in range(len(one.words))}
    assert len(set(one.words)) == len(one.words)


def test_the_peer_learns_by_the_trainer_of_transformers(tmp_path):
    """One word of each text tells its label."""
    encoder, train, test = (
        tiny(tmp_path / "encoder"),
        table(tmp_path / "train.csv", 96),
        table(tmp_path / "test.csv", 8),
    )
    (encoder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "TokenizersBackend", "pad_token": "w0"})
    )
    said = labels.peer(Namespace(minilm=str(encoder), epochs=20), "peer", 0, tmp_path, train, test)
    assert said == ["bad", "good"] * 4
