"""Rows of every usual form become the same conversations; a row of no form is named."""

import json

import pytest

from handscroll.base.errors import ConfigError, DataError
from handscroll.data.table.conversations import conversations, preferences
from handscroll.data.table.read import read_table
from handscroll.data.table.table import Table
from tests.conftest import shared

SAID = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"})
SYSTEM = {"role": "system", "content": "be kind"}
TURNS = [("user", "hi"), ("assistant", "hello")]


@pytest.mark.parametrize(
    ("form", "row"),
    [
        ("messages", {"messages": list(SAID)}),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, SAID[1]]}),
        ("ShareGPT", {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}),
        ("turns", {"turns": [{"speaker": "USER", "utterance": "hi"}, {"speaker": "SYSTEM", "utterance": "hello"}]}),
        ("messages", {"messages": [{"role": "usr", "content": "hi"}, {"role": "sys", "content": "hello"}]}),
        ("turns", {"dialog": ["hi", "hello"]}),
        ("Alpaca", {"instruction": "hi", "input": "", "output": "hello"}),
        ("Self-Instruct", {"instruction": "hi", "instances": [{"input": "", "output": "hello"}]}),
        ("prompt/completion", {"prompt": "hi", "completion": "hello"}),
        ("prompt/completion", {"prompt": [SAID[0]], "completion": [SAID[1]]}),
        ("question/answer", {"question": "hi", "answer": "hello"}),
        ("input/target", {"input": "hi", "target": "hello"}),
        (
            "HH-RLHF, the chosen",
            {"chosen": "\n\nHuman: hi\n\nAssistant: hello", "rejected": "\n\nHuman: hi\n\nAssistant: no"},
        ),
    ],
)
def test_every_form_gives_the_same_messages(form, row):
    found = conversations(Table.of([row]))
    assert found.items[0].messages == SAID
    assert found.forms == {form: 1} and found.items[0].place == "rows, row 1"


def test_what_stands_before_and_behind_the_question():
    row = {
        "instruction": "Sum up",
        "input": "a text",
        "output": "it",
        "system": "be kind",
        "history": [["hi", "hello"]],
    }
    assert conversations(Table.of([row])).items[0].messages == (
        SYSTEM,
        *SAID,
        {"role": "user", "content": "Sum up\n\na text"},
        {"role": "assistant", "content": "it"},
    )
    row = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}], "system": "be kind"}
    assert conversations(Table.of([row])).items[0].messages == (SYSTEM, *SAID)
    kept = [SYSTEM, *SAID, {"role": "user", "content": "bye"}]
    assert conversations(Table.of([{"messages": kept}])).items[0].messages == tuple(kept)


def test_tools_and_their_calls_are_kept():
    tool = {"type": "function", "function": {"name": "clock"}}
    call = {"type": "function", "function": {"name": "clock", "arguments": {}}}
    messages = [
        {"role": "user", "content": "time?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "12:00", "tool_call_id": "1"},
        {"role": "assistant", "content": "noon", "weight": 1},
    ]
    found = conversations(Table.of([{"messages": messages, "tools": json.dumps([tool])}])).items[0]
    assert found.tools == (tool,)
    assert found.messages == (messages[0], {**messages[1], "content": ""}, *messages[2:])
    share = [
        {"from": "human", "value": "time?"},
        {"from": "function_call", "value": '{"name": "clock", "arguments": {}}'},
        {"from": "observation", "value": "12:00"},
        {"from": "gpt", "value": "noon"},
    ]
    assert conversations(Table.of([{"conversations": share}])).items[0].messages[1]["tool_calls"] == [call]


def test_columns_with_other_names_are_given():
    table = Table.of([{"input": "hi", "meta": {"said": "hello"}}])
    assert conversations(table, {"prompt": "input", "answer": "meta.said"}).items[0].messages == SAID
    with pytest.raises(ConfigError, match="did you mean 'answer'"):
        conversations(table, {"anser": "input"})


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"text": "hi"}, "no question"),
        ({"question": "hi"}, "no answer"),
        ({"question": "hi", "answer": " "}, "turn 2 .assistant. is empty"),
        ({"messages": [SAID[0]]}, "nothing to learn"),
        ({"messages": [SAID[1]]}, "nothing is answered"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "'wizard'"),
        ({"messages": [1]}, "no list of turns"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "not text"),
        ({"conversations": [{"from": "function_call", "value": "x"}]}, "not a call"),
        ({"question": "hi", "answer": "hello", "tools": "{"}, "not JSON"),
        ({"question": "hi", "answer": "hello", "history": ["x"]}, "pairs"),
    ],
)
def test_a_row_of_no_form_is_named_or_counted(row, why):
    table = Table.of([{"question": "hi", "answer": "hello"}, row])
    with pytest.raises(DataError, match=f"row 2: .*{why}"):
        conversations(table)
    found = conversations(table, skip_unfit=True)
    assert len(found.items) == 1 and found.account.kept == 1 and found.account.left_out[0].places == ("rows, row 2",)


def test_instances_are_counted():
    rows = [{"instruction": "x", "instances": [{"input": "a", "output": "b"}, {"input": "c", "output": "d"}]}]
    found = conversations(Table.of(rows))
    assert len(found.items) == found.account.kept == 2 and found.account.added[0].count == 1


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "\n\nHuman: hi\n\nAssistant: hello", "rejected": "\n\nHuman: hi\n\nAssistant: no"},
        {"prompt": "hi", "chosen": "hello", "rejected": "no"},
        {"chosen": list(SAID), "rejected": [SAID[0], {"role": "assistant", "content": "no"}]},
        {"prompt": "hi", "chosen": list(SAID), "rejected": [SAID[0], {"role": "assistant", "content": "no"}]},
        {"prompt": [SAID[0]], "chosen": [SAID[1]], "rejected": [{"role": "assistant", "content": "no"}]},
    ],
)
def test_preferences(row):
    found = preferences(Table.of([row])).items[0]
    assert found.prompt == SAID[:1] and found.chosen == SAID[1:]
    assert found.rejected == ({"role": "assistant", "content": "no"},)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "hi", "chosen": "a", "rejected": "a"}, "the same"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"}, "no beginning"),
        ({"prompt": "hi"}, "no two answers"),
        ({"prompt": "hi", "chosen": 1, "rejected": 2}, "neither texts"),
    ],
)
def test_what_is_no_preference_is_named(row, why):
    with pytest.raises(DataError, match=why):
        preferences(Table.of([row]))


@pytest.mark.parametrize(
    ("name", "form", "count"),
    [
        ("dialogue/crosswoz_val.json.zip", "messages", 500),
        ("dialogue/sgd_train_001.json.gz", "turns", 128),
        ("sft/medquad_2300.jsonl.gz", "Alpaca", 2300),
    ],
)
def test_real_files(name, form, count):
    found = conversations(read_table(shared(name)))
    assert found.forms == {form: count}
    assert all(message["role"] in ("user", "assistant") for one in found.items for message in one.messages)


def test_real_preferences():
    found = preferences(read_table(shared("preference/hh_harmless_train.jsonl.gz")), skip_unfit=True)
    assert len(found.items) + sum(one.count for one in found.account.left_out) == 1800 and len(found.items) > 1790


def test_columns_that_are_not_read_are_noted():
    said = [{"role": "system", "content": "Be kind."}, *SAID]
    rows = [
        {"prompt": "Hi", "output": "Ho", "question": "What?", "answer": "That.", "id": 1},
        {"messages": said, "system": "Be brief.", "prompt": "Hi"},
        {"messages": list(SAID), "system": "Be brief.", "history": []},
        {"instruction": "Hi", "input": "you", "output": "Ho", "system_prompt": "Be brief.", "history": [["a", "b"]]},
    ]
    [note] = conversations(Table.of(rows)).account.notes
    assert note == "columns that are not read: question (1 rows), answer (1 rows), prompt (1 rows), system (1 rows)"
    pair = {"prompt": "Hi", "chosen": "Ho", "rejected": "No", "system": "Be brief."}
    assert preferences(Table.of([pair])).account.notes == ()
    [note] = preferences(Table.of([pair | {"question": "What?"}])).account.notes
    assert "question (1 rows)" in note


def test_a_column_that_is_not_there_is_refused():
    table = Table.of([{"prompt": "Hi", "output": "Ho"}])
    with pytest.raises(DataError, match="there is no column 'nope'"):
        conversations(table, {"input": "nope"})


@pytest.mark.parametrize("blank", ["", "  ", None])
@pytest.mark.parametrize("given", [{}, {"answer": "answer"}])
def test_a_blank_answer_is_none_where_rows_may_be_without_one(blank, given):
    table = Table.of([{"question": "hi", "answer": "hello"}, {"question": "hi", "answer": blank}])
    found = conversations(table, given, unanswered=True)
    assert [one.messages for one in found.items] == [SAID, SAID[:1]] and found.account.notes == ()
    asked = Table.of([{"prompt": list(SAID[:1]), "completion": blank}])
    assert conversations(asked, unanswered=True).items[0].messages == SAID[:1]
