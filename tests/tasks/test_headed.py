"""Numbers of texts, documents in blocks, several models together, and training rows that are balanced or made."""

import json

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification

import handscroll
from handscroll.base.errors import CapacityError, ConfigError, DataError
from handscroll.data.batch import collate
from handscroll.models.new import About, new_model
from handscroll.nn.init import initialise
from handscroll.nn.marks import Marks
from handscroll.tasks.batches import packed
from handscroll.tasks.changing import filled
from handscroll.tasks.ensemble import together
from handscroll.tasks.finetune import Options, finetune
from handscroll.tasks.predict import load_tuned, predict
from handscroll.tasks.recipe import TaskData
from handscroll.tasks.task import Example, task_from
from handscroll.text.training import TokenizerConfig, train_tokenizer
from tests.cli.material import run as run_command
from tests.tasks.material import recipe, rows, table, tiny

LONG = [Example(f"row {n}", {"text": " ".join(f"w{20 + (7 * n + i) % 60}" for i in range(size)), "label": str(n % 2)})
        for n, size in enumerate((30, 9, 47, 3))]  # fmt: skip


def scored(path, count=40):
    path.write_text(
        "text,stars\n" + "".join(f"w{20 + n % 5} w{30 + n % 7},{100 + 20 * (n % 5)}\n" for n in range(count))
    )
    return path


def test_numbers_are_learned_and_given_in_their_own_units_by_the_reference_library_too(tmp_path):
    data = scored(tmp_path / "train.csv")
    run = recipe(tiny(tmp_path / "bert"), data, {"epochs": 20}, {"name": "regress"}, columns={"number": "stars"})
    tuned = finetune(run, tmp_path / "run")
    assert tuned.scores["valid"]["pearson"].value > 0.95 and tuned.scores["valid"]["rmse"].value < 10
    told = rows(tmp_path / "run" / "valid.predictions.jsonl")
    lm, task = load_tuned(tmp_path / "run")
    assert (task.mean, task.deviation) == (0.0, 1.0)
    reference = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    for one in told:
        expected = reference(torch.tensor([lm.encode(one["text"])])).logits.item()
        assert one["prediction"] == pytest.approx(expected, abs=1e-2) and abs(expected - one["reference"]) < 30
    again = task.model_copy(update={"mean": 140.0, "deviation": 28.0}).ready(lm, 0)  # to be trained on
    start = (reference(torch.tensor([lm.encode("w20 w30")])).logits.item() - 140) / 28
    assert float(again.scores(["w20 w30"])[0, 0]) == pytest.approx(start, abs=1e-3)


def test_a_decoder_keeps_the_units_in_the_task_and_its_adapter_gives_the_same_numbers(tmp_path):
    data = scored(tmp_path / "train.csv")
    how = {"way": "lora", "epochs": 2}
    run = recipe(tiny(tmp_path / "llama", "llama"), data, how, {"name": "regress"}, columns={"number": "stars"})
    made = finetune(run, tmp_path / "run")
    told = rows(tmp_path / "run" / "valid.predictions.jsonl")
    lm, task = load_tuned(tmp_path / "run")
    assert task.deviation > 20 and json.loads(made.lm.task) == json.loads(lm.task)
    found = predict(lm, task, TaskData(train=(str(data),), columns={"number": "stars"}))
    said = {e["text"]: p.output for e, p in zip(found.part.examples, found.predictions, strict=True)}
    assert all(one["prediction"] == pytest.approx(said[one["text"]], abs=1e-3) for one in told)
    adapter, base = tmp_path / "run" / "adapter", tmp_path / "llama"
    assert (adapter / "task.json").exists()
    for name, words in (("merged", [adapter]), ("over", [base, "--adapter", adapter]), ("int8", [adapter])):
        kind = ["--type", "int8"] if name == "int8" else []
        run_command("export", words[0], tmp_path / name, *words[1:], *kind)
        again = predict(*load_tuned(tmp_path / name), TaskData(train=(str(data),), columns={"number": "stars"}))
        for one, other in zip(again.predictions, found.predictions, strict=True):
            assert one.output == pytest.approx(other.output, abs=1e-3 if name != "int8" else 5)
    run_command("export", tmp_path / "merged", tmp_path / "again", "--type", "f16")
    assert load_tuned(tmp_path / "again")[1] == task
    run_command("extend", tmp_path / "merged", "--out", tmp_path / "longer", "--to", "128", "--method", "ntk")
    assert load_tuned(tmp_path / "longer")[1] == task
    handscroll.load(adapter).merge().save(tmp_path / "saved")
    assert load_tuned(tmp_path / "saved")[1] == task
    handscroll.load(base).save(tmp_path / "saved")
    assert not (tmp_path / "saved" / "task.json").exists()


@pytest.mark.parametrize(("family", "pooling"), [("bert", "mean"), ("bert", "attention"), ("llama", "attention")])
def test_blocks_of_packed_documents_are_read_alone_and_joined(tmp_path, family, pooling):
    lm = handscroll.load(tiny(tmp_path / family, family))
    task = task_from({"name": "classify", "blocks": 12, "pooling": pooling, "labels": ("0", "1")})
    task.ready(lm, 0).model.to(torch.float64)
    made = [task.rows(lm, example)[0] for example in LONG]
    objective, total = task.objective(lm.model), 0.0
    [row] = packed(made, 200)
    batch = collate([row])
    marks = batch.marks()
    mask = objective.mask(lm.model, marks)
    hidden = lm.model.hidden(lm.model.embed(batch.tokens, marks), marks, mask, length=200)
    loss = objective.loss(lm.model, hidden, batch)
    for example, own in zip(LONG, made, strict=True):
        ids, outputs = torch.tensor(own.tokens), []
        segment = own.segment if own.segment is not None else torch.zeros(len(ids)).numpy()
        for number in range(int(segment.max()) + 1):
            part = ids[torch.tensor(segment == number)]
            assert len(part) <= 12
            here = Marks.run(0, len(part))
            states = lm.model.hidden(lm.model.embed(part[None], here), here, lm.model.mask(), length=len(part))[0]
            outputs.append(lm.model.judge(states[0 if family == "bert" else -1]))
        each = torch.stack(outputs)
        weights = each[:, -1].softmax(0) if pooling == "attention" else torch.full_like(each[:, 0], 1 / len(each))
        joint = (weights[:, None] * each[:, :2]).sum(0)
        total += F.cross_entropy(joint, torch.tensor(int(example["label"]))).item()
        [said] = task.predict(lm, [example])
        assert said.more["probabilities"]["1"] == pytest.approx(joint.softmax(-1)[1].item(), abs=1e-6)
        assert said.more["blocks"] == len(each)
    assert loss.count == 4 and loss.total.item() == pytest.approx(total, rel=1e-9)


def test_documents_beyond_the_context_are_refused_whole_and_read_in_blocks(tmp_path):
    model, data = tiny(tmp_path / "bert"), tmp_path / "train.jsonl"
    noise = [" ".join(f"w{40 + (7 * n + i * i * (n + 1)) % 50}" for i in range(90 + n % 9)) for n in range(40)]
    lines = [{"text": f"{noise[n]} w{20 + n % 2}", "label": n % 2} for n in range(40)]
    data.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    with pytest.raises(DataError, match="Nothing is cut"):
        finetune(recipe(model, data), tmp_path / "whole")
    shown = []
    task = {"blocks": 32, "pooling": "attention"}
    tuned = finetune(recipe(model, data, {"epochs": 12}, task), tmp_path / "run", Options(show=shown.append))
    assert "blocks of at most 32 tokens in 36 texts, 3 to 4 a text" in "\n".join(shown)
    assert 3 <= rows(tmp_path / "run" / "valid.predictions.jsonl")[0]["blocks"] <= 4
    lm, task = load_tuned(tmp_path / "run")
    assert task == tuned.task and predict(lm, task, TaskData(train=(str(data),))).scores["accuracy"].value > 0.85
    with pytest.raises(CapacityError, match=r"row 1: the text has \d+ tokens.*task\.blocks=256"):
        predict(lm, task.model_copy(update={"blocks": 0, "pooling": "mean"}), TaskData(train=(str(data),)))
    with pytest.raises(ConfigError, match="give their size"):
        recipe(model, data, None, {"pooling": "attention"})
    with pytest.raises(ConfigError, match="smaller blocks"):
        finetune(recipe(model, data, None, {"blocks": 512}), tmp_path / "large")


def test_models_together_are_averaged_or_vote_and_say_what_that_gains(tmp_path):
    model, data, test = tiny(tmp_path / "bert"), table(tmp_path / "train.csv"), table(tmp_path / "test.csv", 12)
    for seed in range(3):
        finetune(recipe(model, data, {"epochs": 1, "seed": seed, "lr": 1e-3}), tmp_path / f"run{seed}")
    sources = [tmp_path / f"run{seed}" for seed in range(3)]
    given = TaskData(train=(str(test),))
    each = [predict(*load_tuned(source), given).predictions for source in sources]
    found, votes = together(sources, given), together(sources, given, vote=True)
    for number, (mean, vote) in enumerate(zip(found.joint.predictions, votes.joint.predictions, strict=True)):
        alone = [one[number].more["probabilities"]["good"] for one in each]
        assert mean.more["probabilities"]["good"] == pytest.approx(sum(alone) / 3, abs=1e-6)
        assert vote.output == ("good" if sum(chance > 0.5 for chance in alone) > 1 else "bad")
    assert found.gain is not None and found.gain.first == found.joint.scores["accuracy"] and len(found.members) == 3
    other = table(tmp_path / "other.csv", labels=("bad", "other"))
    finetune(recipe(model, other, {"epochs": 1}), tmp_path / "else")
    with pytest.raises(ConfigError, match="different tasks or labels"):
        together([tmp_path / "run0", tmp_path / "else"], given)
    with pytest.raises(ConfigError, match="two different"):
        together([tmp_path / "run0"], given)


def test_training_rows_are_balanced_and_made_counted_and_never_scored(tmp_path):
    data = tmp_path / "train.csv"
    lines = [
        f"w{20 + (n % 5 == 0)} w{30 + n % 7} w{40 + n % 13},{'rare' if n % 5 == 0 else 'often'}" for n in range(60)
    ]
    data.write_text("text,label\n" + "\n".join(lines), encoding="utf-8")
    more = {"balance": "over", "augment": {"way": "swap"}}
    tuned = finetune(recipe(tiny(tmp_path / "bert"), data, {"epochs": 1}, **more), tmp_path / "run")
    account = json.loads((tmp_path / "run" / "result.json").read_text())["tables"]["train"]
    assert {one["reason"] for one in account["added"]} == {"rows made by 'swap'", "repeated rows of the label 'rare'"}
    assert len(set(tuned.task.counts)) == 1
    assert all("augmented" not in one for one in rows(tmp_path / "run" / "valid.predictions.jsonl"))
    with pytest.raises(ConfigError, match="'replace' and 'translate', and they need it"):
        recipe(tmp_path, data, augment={"way": "replace"})


def test_rows_of_several_labels_are_not_balanced(tmp_path):
    """`often; rare` in a cell would be taken as one label."""
    data = tmp_path / "train.csv"
    data.write_text("text,label\n" + "".join(f"w{n},often; rare\nw{n + 50},often\n" for n in range(20)))
    given = recipe(tiny(tmp_path / "bert"), data, {"epochs": 1}, {"several": True}, balance="over")
    with pytest.raises(ConfigError, match=r"data\.balance is for rows of one label each"):
        finetune(given, tmp_path / "run")


def test_gaps_are_filled_with_words_by_a_masked_model(tmp_path):
    settings = TokenizerConfig(vocab=275, special=("[PAD]", "[CLS]", "[SEP]", "[MASK]"))
    tokenizer = train_tokenizer(["the cat sat on the mat and the dog ran"] * 3, settings)
    sizes = {"width": 32, "layers": 1, "heads": 2, "mlp_width": 32, "context": 64}
    model = new_model("bert", sizes, About(tokenizer, 64))
    initialise(model, "normal", 1, torch.Generator().manual_seed(0))
    lm = handscroll.LM(model, tokenizer, "tiny")
    gaps = [("the cat sat on the ", ""), ("", " dog"), ("the ", " ran and the cat sat")]
    together, alone = filled(lm, gaps), [filled(lm, [gap])[0] for gap in gaps]
    assert together == alone and all(word.isalnum() for word in together)
    ids = lm.encode("the cat sat on the ", special=False)
    logits = model(torch.tensor([[tokenizer.cls, *ids, tokenizer.mask, tokenizer.sep]]))[0, len(ids) + 1]
    best = next(at for at in logits.argsort(descending=True).tolist() if lm.decode([at]).strip().isalnum())
    assert together[0] == lm.decode([best]).strip()
    with pytest.raises(ConfigError, match="masked-LM head and a mask token"):
        filled(handscroll.load(tiny(tmp_path / "llama", "llama")), gaps)
