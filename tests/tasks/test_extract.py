"""Answers in documents: targets over windows, the loss of the formula, and a model that other libraries load."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForQuestionAnswering

from handscroll.base.errors import DataError
from handscroll.data.batch import collate
from handscroll.data.row import IGNORED
from handscroll.data.table.table import Table
from handscroll.lm import load
from handscroll.models.weights import save_model
from handscroll.tasks.batches import packed
from handscroll.tasks.examples import encode
from handscroll.tasks.extract import Extract
from handscroll.tasks.finetune import finetune
from handscroll.tasks.recipe import TuningRecipe
from handscroll.tasks.task import Example
from tests.models.heads import PLAIN, words
from tests.tasks.chats import lines
from tests.tasks.material import rows

FRAME = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "w1", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [
        {"SpecialToken": {"id": "w1", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "w2", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 1}},
    ],
    "special_tokens": {name: {"id": name, "ids": [int(name[1:])], "tokens": [name]} for name in ("w1", "w2")},
}


@pytest.fixture
def reader(tmp_path):
    """A random encoder of 64 tokens."""
    save_model(PLAIN["bert"].build(torch.float32), tmp_path / "bert")
    (tmp_path / "bert" / "tokenizer.json").write_text(words(FRAME), encoding="utf-8")
    return tmp_path / "bert"


def asked(number: int, size: int = 12) -> dict:
    """The answer is the one run of words below w30."""
    drawn = np.random.default_rng(number)
    text = [f"w{n}" for n in drawn.integers(40, 90, size)]
    at = int(drawn.integers(0, size - 2))
    text[at : at + 1 + number % 2] = ["w20", "w21"][: 1 + number % 2]
    answer = " ".join(text[at : at + 1 + number % 2])
    context = " ".join(text)
    return {"context": context, "question": "w35", "answers": [{"text": answer, "answer_start": context.index(answer)}]}


def test_every_window_points_at_the_answer_or_at_its_first_token(reader):
    lm, task = load(reader), Extract()
    [example] = task.read(Table.of([asked(3, 100)]), {}).examples
    task.ready(lm, 0)
    made = task.rows(lm, example)
    assert len(made) > 1 and all(len(row.tokens) <= lm.context for row in made)
    pointed = []
    for row in made:
        assert (row.labels[[0]] == 0).all() and (row.labels[1:3] == IGNORED).all()  # the question is no answer
        told = row.tokens[row.targets != IGNORED]
        assert row.targets[row.targets != IGNORED].sum() == 3
        pointed.append(lm.decode(told.tolist()))
    assert "w20 w21" in pointed and set(pointed) - {"w20 w21"} <= {"w1", ""}
    assert "⟦w20 w21⟧" in "".join(text.plain for text in task.shown(lm, example)).replace(" ⟦", "⟦")


def test_the_loss_is_that_of_the_formula_packed_or_not(reader):
    lm, task = load(reader), Extract()
    task.ready(lm, 0)
    examples = task.read(Table.of([asked(n) for n in range(4)]), {}).examples
    made = [row for one in examples for row in task.rows(lm, one)]
    objective, total = task.objective(lm.model), 0.0

    def loss(row):
        batch = collate([row])
        marks = batch.marks()
        hidden = lm.model.hidden(lm.model.embed(batch.tokens, marks), marks, objective.mask(lm.model, marks), length=64)
        return hidden, objective.loss(lm.model, hidden, batch)

    for row in made:
        hidden, found = loss(row)
        scores = lm.model.judge(hidden)[0][torch.from_numpy(row.labels) == 0].log_softmax(0)
        wanted = row.targets[row.labels == 0]
        first, last = int(np.argmax(wanted % 2 == 1)), int(np.argmax(wanted >= 2))
        total += found.count * -float((scores[first, 0] + scores[last, 1]).detach()) / 2
        assert found.count == row.counted
    together = sum(float(loss(row)[1].total.detach()) for row in packed(made, 64))
    assert together == pytest.approx(total, rel=1e-4)


def test_a_reader_is_tuned_scored_and_read_by_the_reference_library(tmp_path, reader):
    data = lines(tmp_path / "train.jsonl", [asked(n) for n in range(48)])
    test = lines(tmp_path / "test.jsonl", [asked(n) for n in range(100, 112)])
    how = {"way": "full", "epochs": 12, "batch": 8, "lr": 5e-3, "memory": {"strategy": "plain"}}
    values = {"task": {"name": "extract"}, "model": str(reader), "threads": 1, "tuning": how}
    given = {"train": (str(data),), "test": (str(test),)}
    tuned = finetune(TuningRecipe.parse(values | {"data": given}, "test"), tmp_path / "run")
    assert tuned.scores["test"]["token-f1"].value > 0.9
    beside = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))["scores"]["test"]
    assert beside["most similar sentence"]["token-f1"]["value"] < 0.5  # a text without full stops is one sentence
    told = rows(tmp_path / "run" / "test.predictions.jsonl")[0]
    assert told["context"][told["start"] : told["end"]] == told["prediction"]
    saved = load(tmp_path / "run" / "model")
    reference = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "run" / "model").eval()
    ids = [1, 35, 2, 50, 20, 60]
    kinds = [0, 0, 0, 1, 1, 1]
    with torch.no_grad():
        found = reference(torch.tensor([ids]), token_type_ids=torch.tensor([kinds]))
    best = saved.answers("w35", "w50 w20 w60")[0]
    assert best.text == "w20"
    assert best.score == pytest.approx(float(found.start_logits[0, 4] + found.end_logits[0, 4]), abs=1e-4)


def test_the_baseline_is_the_sentence_that_is_most_like_the_question():
    english = "We keep data for a year. You may ask us to delete your photos.  We sell nothing."
    chinese = "他生于北京。一九九五年他去了上海。"
    given = [(english, "How can I delete photos?"), (chinese, "他哪年去了上海？"), (english, "?"), ("no stop", "why?")]
    rows = [{"context": context, "question": question, "answers": ["x"]} for context, question in given]
    examples = [Example(f"row {number}", row) for number, row in enumerate(rows)]
    found = Extract().baselines((), examples)["most similar sentence"]
    assert [one.output for one in found] == [
        "You may ask us to delete your photos.",
        "一九九五年他去了上海。",
        "We keep data for a year.",
        "no stop",
    ]


def test_answers_that_stand_nowhere_are_refused_or_left_out_and_counted():
    rows = [asked(1), asked(2) | {"answers": ["w99"]}, asked(4) | {"answers": {"text": ["w20"], "answer_start": [0]}}]
    with pytest.raises(DataError, match=r"row 2: the answer 'w99' does not stand in its context"):
        Extract().read(Table.of(rows), {})
    part = Extract().read(Table.of(rows), {}, skip_unfit=True)
    assert len(part.examples) == 2 and "do not stand in their context: 1" in str(part.account)
    assert Extract().truth(part.examples[1]) == ["w20"]


def test_where_no_row_fits_the_account_says_why():
    with pytest.raises(DataError, match=r"no row is left(.|\n)*do not stand in their context: 2"):
        Extract().read(Table.of([asked(n) | {"answers": ["w99"]} for n in range(2)]), {}, skip_unfit=True)


@pytest.mark.parametrize("given", ["w20", {"text": "w20", "answer_start": 4}, [{"text": " w20 ", "answer_start": 3}]])
def test_answers_of_any_form_are_found_without_the_blanks_around_them(reader, given):
    lm, task = load(reader), Extract()
    [example] = task.read(Table.of([asked(1) | {"context": "w20 w20 w50", "answers": given}]), {}).examples
    [row] = task.rows(lm, example)
    told = np.flatnonzero(row.targets > 0).tolist()
    assert told == [len(row.tokens) - (3 if given == "w20" else 2)]


def test_the_language_of_the_answers_is_checked():
    row = {"context": "世界贸易组织成立于1995年。", "question": "何时？", "answers": ["1995年"]}
    examples = Extract().read(Table.of([row]), {}).examples
    assert Extract(language="zh").checked(examples)
    with pytest.raises(DataError, match=r"task\.language=zh"):
        Extract().checked(examples)


def test_answers_without_a_text_are_refused():
    for wrong in ([{"answer_start": 3}], {"answer_start": [3]}, {"text": ["w20", "w21"], "answer_start": [1]}):
        with pytest.raises(DataError, match="row 1: answers"):
            Extract().read(Table.of([asked(1) | {"answers": wrong}]), {})


def test_an_answer_that_no_window_holds_is_refused_or_left_out_and_counted(reader):
    lm, task = load(reader), Extract()
    task.ready(lm, 0)
    words = [f"w{20 + n % 70}" for n in range(120)]
    long = {"context": " ".join(words), "question": "w35", "answers": " ".join(words[30:85])}
    examples = task.read(Table.of([long, asked(3, 100)]), {}).examples
    with pytest.raises(DataError, match=r"1 of 2 examples are longer than 64 tokens \(rows, row 1: 123 tokens"):
        encode(task, lm, examples, 64)
    kept = encode(task, lm, examples, 64, "skip")
    assert kept.account.left == (("rows, row 1", 123),) and kept.examples == 1
    assert "⟦" in task.shown(lm, examples[0])[0].plain
