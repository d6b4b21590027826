"""The parts of a tuning run: what is asked stays on one side, and what cannot be learned from is left out, counted."""

import pytest

from handscroll.base.errors import DataError
from handscroll.tasks.examples import read_parts
from handscroll.tasks.recipe import TaskData
from handscroll.tasks.task import task_from
from tests.naming import naming
from tests.tasks.chats import lines

WORDS = "amber birch cedar delta ember fjord grove heath inlet knoll ledge marsh north ocean pines quartz".split()


def words(number: int, size: int) -> str:
    """Words that no other number gives nearly alike."""
    return " ".join(f"{WORDS[(number * 7 + at * at) % len(WORDS)]}{number}" for at in range(size))


def question(number: int) -> str:
    return f"What is the {words(number, 4)} of it?"


def chat(number: int, asked: str) -> dict:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": words(number, 30)}]}


FORMS = {
    "instruct": lambda n, asked: {"question": asked, "answer": words(n, 30)},
    "chat": chat,
    "prefer": lambda n, asked: {"prompt": asked, "chosen": words(n, 30), "rejected": words(1000 + n, 40)},
}


def asked_in(part):
    return {str(one.values.get("prompt", one.values.get("messages", [])[:1])) for one in part.examples}


@pytest.mark.parametrize("task", FORMS)
def test_a_question_with_several_answers_stays_on_one_side_of_a_split(tmp_path, task):
    made = [FORMS[task](number, question(number // 3)) for number in range(60)]
    data = lines(tmp_path / "rows.jsonl", made)
    parts = read_parts(task_from(task), TaskData(train=(str(data),), held_out=0.2), 0)
    assert len(parts["valid"].examples) >= 9 and not asked_in(parts["train"]) & asked_in(parts["valid"])
    assert any("what is asked" in note for note in parts["valid"].notes)


@pytest.mark.parametrize("task", FORMS)
def test_a_system_prompt_that_all_rows_share_does_not_hold_them_together(tmp_path, task):
    made = [{**FORMS[task](number, question(number)), "system": words(5000, 200)} for number in range(30)]
    parts = read_parts(task_from(task), TaskData(train=(str(lines(tmp_path / "rows.jsonl", made)),)), 0)
    assert len(parts["valid"].examples) == 3


def test_rows_that_all_ask_the_same_are_not_split_and_the_error_names_what_helps(tmp_path):
    data = lines(tmp_path / "rows.jsonl", [FORMS["instruct"](number, "Go on.") for number in range(30)])
    with pytest.raises(DataError, match=naming("--valid", "data.held_out")):
        read_parts(task_from("instruct"), TaskData(train=(str(data),)), 0)
    parts = read_parts(task_from("instruct"), TaskData(train=(str(data),), held_out=0.0), 0)
    assert len(parts["train"].examples) == 30


def test_rows_that_are_no_conversations_are_left_out_after_a_split_as_before_it(tmp_path):
    made = [FORMS["instruct"](number, question(number)) for number in range(30)]
    data = lines(tmp_path / "rows.jsonl", [*made, {"nothing": 1}])
    with pytest.raises(DataError, match="row 31"):
        read_parts(task_from("instruct"), TaskData(train=(str(data),)), 0)
    parts = read_parts(task_from("instruct"), TaskData(train=(str(data),), skip_unfit=True), 0)
    assert sum(len(part.examples) for part in parts.values()) == 30


@pytest.mark.parametrize(
    "task, right, none",
    [
        ("classify", {"label": "good"}, {"label": ""}),
        ("regress", {"number": 3}, {"number": ""}),
        ("translate", {"translation": "amber"}, {"translation": ""}),
        ("instruct", {"answer": "amber"}, {"answer": None}),
        ("extract", {"answers": ["amber3"]}, {"answers": None}),
    ],
)
def test_rows_that_do_not_tell_what_is_right_are_left_out_and_counted(tmp_path, task, right, none):
    def row(number):
        text = words(number, 30)
        given = {"source": text} if task == "translate" else {"text": text}
        given |= {"question": question(number)} if task in ("instruct", "extract") else {}
        return given | ({"context": f"{given.pop('text')} amber3"} if task == "extract" else {})

    made = [{**row(number), **(none if number % 10 == 3 else right)} for number in range(40)]
    data = str(lines(tmp_path / "rows.jsonl", made))
    parts = read_parts(task_from(task), TaskData(train=(data,), valid=(data,), skip_unfit=True), 0)
    for part in parts.values():
        assert len(part.examples) == 36 and sum(one.count for one in part.account.left_out) == 4
    parts = read_parts(task_from(task), TaskData(train=(data,), skip_unfit=True), 0)
    assert sum(len(part.examples) for part in parts.values()) == 36


def test_of_several_labels_an_empty_cell_names_none(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\nw1 w2,a; b\nw3 w4,\nw5 w6, \nw7,b\n", encoding="utf-8")
    data = TaskData(train=(str(tmp_path / "rows.csv"),), held_out=0.0, skip_unfit=True)
    task = task_from({"name": "classify", "several": True})
    found = read_parts(task, data, 0)["train"].examples
    assert [task.truth(one) for one in found] == [["a", "b"], [], [], ["b"]]


ABOUT = {
    "answer": lambda text, asked: {"document": text, "question": asked, "answer": "amber"},
    "extract": lambda text, asked: {"context": f"{text} amber3", "question": asked, "answers": ["amber3"]},
    "summarise": lambda text, asked: {"document": text, "query": asked, "summary": "amber"},
}


@pytest.mark.parametrize("task", ABOUT)
def test_a_question_about_a_document_is_a_copy_where_both_are_the_same(tmp_path, task):
    """The same question about another document is another task, and so is another question about the same one."""
    text, other, far = (" ".join(f"word{100 * number + at}" for at in range(60)) for number in range(3))
    asked = "What is it?"
    made = [(other, asked), (text, "Where is it?"), (text, asked), (f"{text} and more", "what IS  it?")]
    train, test = (
        lines(tmp_path / f"{name}.jsonl", [ABOUT[task](*one) for one in rows])
        for name, rows in (("train", [(far, "Where is it?"), (text, asked)]), ("test", made))
    )
    data = TaskData(train=(str(train),), test=(str(test),), held_out=0.0)
    told = read_parts(task_from(task), data, 0)["test"].leakage
    assert "2 of 4 test rows (50.0%)" in told and "1 exact, 1 near copies" in told
    assert all(f"row {row} = " in told for row in (3, 4))


def test_a_preference_is_a_copy_where_the_same_is_asked(tmp_path):
    """The answers of another model to the same prompt do not make it a new one."""
    sides = [{"chosen": words(n, 30), "rejected": words(1000 + n, 40)} for n in range(2)]
    train, test = (
        lines(tmp_path / f"{name}.jsonl", made)
        for name, made in (
            ("train", [{"prompt": question(1), **sides[0]}]),
            ("test", [{"prompt": question(1), **sides[1]}, {"prompt": question(2), **sides[0]}]),
        )
    )
    data = TaskData(train=(str(train),), test=(str(test),), held_out=0.0)
    told = read_parts(task_from("prefer"), data, 0)["test"].leakage
    assert "1 of 2 test rows" in told and "1 exact" in told and "row 1 = " in told
