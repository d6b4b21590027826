"""Long tasks: forms recognised, nothing cut in silence, one reading for all questions, runs that go on."""

import json

import pytest
from typer.testing import CliRunner

from handscroll.base.errors import CapacityError, CheckpointError, ConfigError, DataError
from handscroll.cache.reading.store import Store
from handscroll.cli.main import app
from handscroll.evaluate.questions import asking, run
from handscroll.evaluate.questions.asking import Asker, Asking, answers, batches
from handscroll.evaluate.questions.forms import read_sheets
from handscroll.evaluate.questions.judge import blanks_in, letter_in, measures, named_in, number_in
from handscroll.report import evaluation_page, render
from tests.naming import naming
from tests.tasks.chats import lines, saved, talker

DOCUMENT = "the quick fox jumps over the lazy dog and runs away from the cat. " * 8
ROWS = {
    "longbench": {
        "input": "Who runs?", "context": DOCUMENT, "answers": ["the fox", "a fox"], "dataset": "hotpotqa",
        "language": "en", "all_classes": None, "length": 90, "_id": "1",
    },
    "longbench2": {
        "_id": "2", "context": DOCUMENT, "question": "Who runs?", "choice_A": "the fox", "choice_B": "the hen",
        "choice_C": "the cow", "choice_D": "no one", "answer": "A", "difficulty": "easy", "length": "short",
    },
    "loogle": {
        "input": DOCUMENT, "title": "fox", "output": "none",
        "qa_pairs": "[{'Q': 'Who runs?', 'A': 'the fox', 'S': ['x']}, {'Q': 'From whom?', 'A': 'the cat'}]",
    },
    "cloze": {
        "input": DOCUMENT, "title": "fox", "output": "None",
        "qa_pairs": "[{'Q': '<mask-1> runs from <mask-0>.', 'A': {'<mask-0>': 'cat', '<mask-1>': 'fox'}}]",
    },
    "leval": {
        "input": DOCUMENT, "instructions": ["Who runs? A. fox B. hen", "Why?"], "outputs": ["A", "It is quick."],
        "evaluation": "exam", "source": "x",
    },
    "qmsum": {
        "meeting_transcripts": [{"speaker": "A", "content": "We {disfmarker} agree ."}],
        "general_query_list": [{"query": "Summarize the whole meeting", "answer": "They agree."}],
        "specific_query_list": [{"query": "What did A say?", "answer": "A agrees."}], "topic_list": [],
    },
    "summaries": {"id": "1", "document": "今天开会讨论了计划。" * 9, "summary": "讨论计划。"},
    "gsm": {"question": "How many are 2 and 3?", "answer": "2+3=<<2+3=5>>5\n#### 5"},
    "plain": {"context": DOCUMENT, "query": "Who runs?", "answers": ["the fox"], "note": "x"},
    "choices": {"question": "Who runs?", "options": ["the hen", "the fox"], "answer": 1},
}  # fmt: skip
WANTED = {
    "longbench": ("LongBench", "words", ("the fox", "a fox")),
    "longbench2": ("LongBench v2", "letter", ("A",)),
    "loogle": ("LooGLE", "words", ("the fox",)),
    "cloze": ("LooGLE", "blanks", ("fox", "cat")),
    "leval": ("L-Eval", "letter", ("A",)),
    "qmsum": ("QMSum", "summary", ("They agree.",)),
    "summaries": ("summaries", "summary", ("讨论计划。",)),
    "gsm": ("worked answers", "number", ("5",)),
    "plain": ("questions", "words", ("the fox",)),
    "choices": ("questions", "letter", ("B",)),
}


@pytest.fixture(scope="module")
def lm():
    return talker(context=1024)


def sheet_of(tmp_path, *rows, name="set.jsonl"):
    (sheet,) = read_sheets([lines(tmp_path / name, list(rows))])
    return sheet


@pytest.mark.parametrize("name", ROWS)
def test_a_form_is_recognised_by_its_columns(name, tmp_path):
    sheet = sheet_of(tmp_path, ROWS[name], name=f"{name}.jsonl")
    form, judge, wanted = WANTED[name]
    first = sheet.items[0]
    assert (sheet.form, first.judge, first.wanted) == (form, judge, wanted)
    assert first.place.endswith(("row 1", "question 1")) and sheet.says


def test_rows_of_big_bench_hard_are_judged_by_what_their_answers_are(tmp_path):
    def judge(*targets):
        rows = [{"input": f"question {number}", "target": target} for number, target in enumerate(targets)]
        (tmp_path / "bbh.json").write_text(json.dumps({"canary": "x", "examples": rows}), encoding="utf-8")
        (sheet,) = read_sheets([tmp_path / "bbh.json"])
        return sheet.items[0]

    assert judge("True", "False", "True").judge == "class"
    assert judge("8", "12").judge == "number"
    assert (judge("(A)", "(B)").judge, judge("(A)", "(B)").wanted) == ("letter", ("A",))
    assert judge(*(f"word {number}" for number in range(20))).judge == "words"


def test_rows_that_ask_nothing_are_counted_and_broken_ones_refused(tmp_path):
    empty = ROWS["loogle"] | {"qa_pairs": "none"}
    sheet = sheet_of(tmp_path, ROWS["loogle"], empty)
    assert len(sheet.items) == 2 and sheet.account.kept == 1 and sheet.account.left_out[0].count == 1
    for broken in ("[{'Q': ", "{'Q': 1}", "__import__('os')"):
        with pytest.raises(DataError, match=naming("row 1", "qa_pairs")):
            sheet_of(tmp_path, ROWS["loogle"] | {"qa_pairs": broken})
    with pytest.raises(DataError, match="no row has a question"):
        sheet_of(tmp_path, empty)
    with pytest.raises(DataError, match=naming("question", "LongBench v2")):
        sheet_of(tmp_path, {"a": "b"})


def test_one_text_is_one_answer_and_a_list_of_texts_is_one_document(tmp_path):
    (first,) = sheet_of(tmp_path, ROWS["longbench"] | {"answers": "Paris"}).items
    assert first.wanted == ("Paris",) and measures([first], ["Paris"])["exact-match"].value == 1
    (second,) = sheet_of(tmp_path, ROWS["longbench"] | {"answers": [3]}).items
    assert second.wanted == ("3",)
    for row in (ROWS["plain"], ROWS["longbench"], ROWS["summaries"]):
        name = "context" if "context" in row else "document"
        (item,) = sheet_of(tmp_path, row | {name: ["Ann came.", "Bob left."]}).items
        assert item.document == "Ann came.\n\nBob left."


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("plain", {"context": {"title": ["x"], "sentences": [["Ann came."]]}}),
        ("plain", {"context": ["Ann came.", None, {}]}),
        ("plain", {"query": ["Who?"]}),
        ("longbench", {"context": {}}),
        ("longbench", {"input": ["Who?"]}),
        ("longbench", {"answers": [{"words": "x"}]}),
        ("loogle", {"qa_pairs": [{"Q": "Who?", "A": 1.5}, {"Q": ["Who?"], "A": "x"}]}),
        ("loogle", {"input": 5, "qa_pairs": [{"Q": "Who?", "A": {"<mask-0>": ["x"]}}, {"Q": {}, "A": "x"}]}),
        ("leval", {"outputs": ["A", {"x": 1}]}),
        ("qmsum", {"meeting_transcripts": [{"speaker": "A"}]}),
        ("qmsum", {"meeting_transcripts": "A: We agree."}),
        ("qmsum", {"specific_query_list": ["What did A say?"]}),
        ("qmsum", {"specific_query_list": [{"query": ["What?"], "answer": "x"}]}),
        ("longbench2", {"choice_A": ["x"]}),
        ("choices", {"options": "the hen|the fox"}),
        ("choices", {"options": {"text": ["the hen", "the fox"], "label": ["A", "B"]}}),
        ("choices", {"options": [["the hen"], ["the fox"]]}),
        ("choices", {"answer": "the cow"}),
        ("choices", {"answer": True}),
    ],
)
def test_values_of_another_kind_are_refused_by_their_row(name, change, tmp_path):
    with pytest.raises(DataError, match=r"set\.jsonl, row 2"):
        sheet_of(tmp_path, ROWS[name], ROWS[name] | change)


def test_choices_by_their_letters_are_choices(tmp_path):
    (item,) = sheet_of(tmp_path, ROWS["choices"] | {"options": {"A": "the hen", "B": "the fox"}, "answer": "B"}).items
    assert (item.asks, item.choices, item.wanted) == ("choice", ("the hen", "the fox"), ("B",))
    (item,) = sheet_of(tmp_path, ROWS["choices"] | {"options": None, "answer": "the fox"}).items
    assert (item.asks, item.choices, item.wanted) == ("answer", (), ("the fox",))


def test_classes_that_rows_do_not_name_are_those_of_the_file(tmp_path):
    rows = [ROWS["longbench"] | {"dataset": "trec", "answers": [one]} for one in ("Person", "Place", "Person")]
    sheet = sheet_of(tmp_path, *rows)
    assert [item.choices for item in sheet.items] == [("Person", "Place")] * 3
    assert measures(sheet.items[:1], ["a Person"])["accuracy"].value == 1
    assert any("trec" in note for note in sheet.account.notes)
    named = sheet_of(tmp_path, rows[0] | {"all_classes": ["Person", "Thing"]}, rows[1])
    assert [item.choices for item in named.items] == [("Person", "Thing"), ("Person", "Thing", "Place")]


def test_questions_inside_rows_are_counted(tmp_path):
    pairs = [{"Q": "Who?", "A": "x"}, {"Q": "Why?", "A": ""}, {"question": "When?", "answer": "z"}]
    sheet = sheet_of(tmp_path, ROWS["loogle"] | {"qa_pairs": pairs})
    assert len(sheet.items) == 1 and sheet.account.kept == 1
    (empty,) = sheet.empty
    assert empty.count == 2 and empty.places[0].endswith("row 1, question 2")
    exam = sheet_of(tmp_path, ROWS["leval"] | {"outputs": ["A", None]})
    assert len(exam.items) == 1 and exam.empty[0].count == 1


@pytest.mark.parametrize(
    ("name", "column"),
    [("longbench2", "context"), ("loogle", "input"), ("leval", "input"), ("qmsum", "meeting_transcripts")],
)
def test_a_question_is_never_asked_without_its_document(name, column, tmp_path):
    sheet = sheet_of(tmp_path, ROWS[name], ROWS[name] | {column: None})
    assert {item.place.partition("row ")[2][0] for item in sheet.items} == {"1"}
    assert sheet.account.kept == 1 and sheet.documents == 1


def test_answers_are_read_as_a_person_would():
    assert [number_in(t) for t in ("#### 1,250.50", "7 or 8", "none", "-3 #### -4")] == ["1250.5", "8", None, "-4"]
    found = [letter_in(t, ("fox", "hen", "cow")) for t in ("B.", "The answer is (A)", "It is (C)!", "hen", "Because")]
    assert found == ["B", "A", "C", "B", None]
    assert named_in("It is a Location of entity", ("entity", "location", "loc")) == "location"
    assert blanks_in('<mask-1>: "the fox"\n<mask-0> = cat', ("<mask-1>", "<mask-0>", "<mask-2>")) == [
        "the fox",
        "cat",
        "",
    ]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is a bit tricky, but it is (C).", "C"),
        ("I would choose (B).", "B"),
        ("A careful reading shows (D).", "D"),
        ("answer is **C**", "C"),
        ("The answer is: $\\boxed{C}$", "C"),
        ("B. The hen, since (A) flies", "B"),
        ("Answer: E", None),
        ("I do not know", None),
        ("B the hen", "B"),
        ("option A? No: the ANSWER IS D", "D"),
    ],
)
def test_only_letters_of_the_choices_are_answers(text, letter):
    assert letter_in(text, ("fox", "hen", "cow", "dog")) == letter


def test_classes_are_words_and_the_number_is_the_first_behind_its_mark():
    assert named_in("I know that it did: Yes", ("Yes", "No")) == "Yes"
    assert named_in("It is invalid", ("valid", "invalid")) == "invalid"
    assert named_in("Unknown.", ("Yes", "No")) is None
    assert named_in("答案是体育新闻", ("体育", "财经")) == "体育" and named_in("答案是Yes吗", ("Yes", "No")) == "Yes"
    assert [number_in(t) for t in ("#### 18 dollars in 2 days", "2 of 3 ####")] == ["18", "3"]


def test_blanks_count_singly(tmp_path):
    sheet = sheet_of(tmp_path, ROWS["cloze"])
    scores = measures(sheet.items, ["<mask-1>: fox\n<mask-0>: dog"])
    assert (scores["exact-match"].value, scores["exact-match"].count) == (0.5, 2)


def alone(asker, prompt):
    """The answer to one prompt, asked by itself."""
    (group,) = batches(asker.lm, [prompt])
    ((one,),) = answers(asker, group)
    return one.text, one.finish


@pytest.mark.parametrize("form", ["chat", "plain"])
def test_one_reading_serves_all_questions_of_a_document(form, lm, tmp_path):
    """Answers are those of each question by itself; only what differs between the questions is read again."""
    more = [{"Q": f"What is word {number}?", "A": "fox"} for number in range(5)]
    sheet = sheet_of(tmp_path, ROWS["loogle"] | {"qa_pairs": json.dumps(more)})
    todo = run.plan(lm, [sheet], Asking(form=form, max_tokens=6))
    (part,) = todo.parts
    assert todo.to_read < 0.4 * todo.alone and len(part.groups) == 1
    read = []
    found = [one for some in answers(todo.asker, part.groups[0], read.append) for one in some]
    assert sum(one.read for one in found) == todo.to_read and read[-1] == part.groups[0][0].shared
    assert [(one.text, one.finish) for one in found] == [alone(todo.asker, prompt) for prompt in part.prompts]
    assert all(one.written <= 6 for one in found) and any(one.text for one in found)


def test_what_a_store_holds_is_not_read_again(lm, tmp_path):
    more = [{"Q": f"What is word {number}?", "A": "fox"} for number in range(3)]
    sheet = sheet_of(tmp_path, ROWS["loogle"] | {"qa_pairs": json.dumps(more)})
    asking = Asking(max_tokens=4)
    plain = run.run(run.plan(lm, [sheet], asking))
    first, second = (run.run(run.plan(lm, [sheet], asking, Store(tmp_path / "store"))) for _ in range(2))
    assert plain["tasks"] == first["tasks"] == second["tasks"]
    assert plain["actual"]["read"] == first["actual"]["read"] == plain["plan"]["read"]
    assert second["actual"]["read"] < 0.4 * first["actual"]["read"]


def test_what_does_not_fit_is_refused_left_out_or_cut_and_counted(lm, tmp_path):
    long = ROWS["loogle"] | {"input": DOCUMENT * 12}
    sheet = sheet_of(tmp_path, ROWS["loogle"], long)
    few = {"max_tokens": 4, "form": "plain"}
    with pytest.raises(CapacityError, match=naming("2 of 4 questions", "row 2, question 1", "1,024")):
        run.plan(lm, [sheet], Asking(**few))
    skipped = run.run(run.plan(lm, [sheet], Asking(**few, too_long="skip")))
    (task,) = skipped["tasks"]
    places = [one["place"].rpartition("row ")[2] for one in task["left_out"]]
    assert task["questions"] == 2 and places == ["2, question 1", "2, question 2"]
    assert skipped["certificate"]["seen"] == skipped["certificate"]["offered"]

    todo = run.plan(lm, [sheet], Asking(**few, too_long="middle"))
    cut = [prompt for prompt in todo.parts[0].prompts if not prompt.certificate.whole]
    assert len(cut) == 2 and all(prompt.total <= 1024 < prompt.offered for prompt in cut)
    for prompt in cut:
        assert "[...]" in prompt.text and prompt.text.endswith(f"{prompt.item.question}\nAnswer:")
        assert prompt.text.startswith(DOCUMENT[:60]) and prompt.total > 1000
    record = run.run(todo)
    seen = record["certificate"]
    assert record["tasks"][0]["cut"] == 2 and seen["seen"] < seen["offered"]
    assert "not the whole texts" in render(evaluation_page([record]))


def test_a_question_without_a_document_is_never_cut(tmp_path):
    sheet = sheet_of(tmp_path, ROWS["gsm"] | {"question": "How many? " * 400})
    with pytest.raises(CapacityError, match="row 1"):
        run.plan(talker(context=256), [sheet], Asking(too_long="middle", max_tokens=4))


def test_a_score_of_cut_documents_is_refused_unless_it_was_asked_for(lm, tmp_path):
    sheet = sheet_of(tmp_path, ROWS["loogle"] | {"input": DOCUMENT * 12})
    todo = run.plan(lm, [sheet], Asking(too_long="middle", max_tokens=2))
    lines_of = {
        line["place"]: line for part in todo.parts for line in run._asked(todo.asker, part, {}, lambda *a: None)
    }
    asked = Asker(lm, Asking(too_long="refuse", max_tokens=2))
    with pytest.raises(DataError, match="the model saw"):
        run.record(run.Plan(asked, todo.parts), lines_of)


class Killed(Exception):
    """As good as a signal, from inside of the run."""


def _timeless(record):
    return {**record, "actual": {}}


def test_a_run_that_was_killed_goes_on_and_asks_nothing_twice(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "TOGETHER", 80)
    rows = [ROWS["gsm"] | {"question": f"How many are {number} and 3?"} for number in range(6)]
    todo = run.plan(lm, [sheet_of(tmp_path, *rows)], Asking(max_tokens=3, shots=1))
    assert sum(len(group) for group in todo.parts[0].groups) > 2
    whole = run.run(todo, tmp_path / "whole")

    def kill(done, note):
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        run.run(todo, tmp_path / "killed", kill)
    asked = []
    monkeypatch.setattr(run, "answers", lambda asker, group, on_read: asked.append(len(group)) or answers(asker, group))
    again = run.run(todo, tmp_path / "killed")
    assert _timeless(again) == _timeless(whole) and 0 < sum(asked) < sum(len(group) for group in todo.parts[0].groups)
    asked.clear()
    assert _timeless(run.run(todo, tmp_path / "killed")) == _timeless(whole) and sum(asked) == 0
    other = run.plan(lm, [sheet_of(tmp_path, *rows)], Asking(max_tokens=4, shots=1))
    with pytest.raises(CheckpointError, match="other questions"):
        run.run(other, tmp_path / "killed")


def test_damaged_files_of_a_run_are_named(lm, tmp_path):
    todo = run.plan(lm, [sheet_of(tmp_path, ROWS["gsm"])], Asking(max_tokens=3))
    run.run(todo, tmp_path / "run")
    answers, asked = tmp_path / "run" / run.ANSWERS, tmp_path / "run" / run.QUESTIONS
    kept = answers.read_text(encoding="utf-8")
    answers.write_text(kept + "{}\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"answers\.jsonl, line 2"):
        run.run(todo, tmp_path / "run")
    answers.write_text(kept, encoding="utf-8")
    asked.write_text("[1]", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"questions\.json"):
        run.run(todo, tmp_path / "run")


def test_examples_are_never_asked_and_stand_before_every_question(lm, tmp_path):
    rows = [ROWS["gsm"] | {"question": f"How many are {number} and 3?"} for number in range(4)]
    sheet = sheet_of(tmp_path, *rows)
    for form in ("plain", "chat"):
        (part,) = run.plan(lm, [sheet], Asking(shots=2, form=form, max_tokens=4)).parts
        assert len(part.prompts) == 2
        asked = {prompt.item.question for prompt in part.prompts}
        for prompt in part.prompts:
            shown = [row["question"] for row in rows if row["question"] in prompt.text]
            assert len(shown) == 3 and len(asked & set(shown)) == 1 and "2+3=5\n#### 5" in prompt.text
    with pytest.raises(ConfigError, match="4 examples of 4"):
        run.plan(lm, [sheet], Asking(shots=4))
    with pytest.raises(ConfigError, match="about documents"):
        run.plan(lm, [sheet_of(tmp_path, ROWS["loogle"])], Asking(shots=1))


def test_the_command_shows_its_plan_and_keeps_its_records(tmp_path):
    model, file = (
        saved(tmp_path / "model"),
        lines(tmp_path / "set.jsonl", [ROWS["loogle"], ROWS["loogle"] | {"qa_pairs": "none"}]),
    )
    run_it = ["evaluate", "tasks", str(model), str(file), "--max-tokens", "4", "--json", str(tmp_path / "r.jsonl")]
    planned = CliRunner().invoke(app, [*run_it, "--plan"])
    assert planned.exit_code == 0, planned.output
    assert "LooGLE (document <- input" in planned.output and "asked one by one" in planned.output
    assert "rows that ask nothing" in planned.output and not (tmp_path / "r.jsonl").exists()
    done = CliRunner().invoke(app, [*run_it, "--out", str(tmp_path / "run"), "--report", str(tmp_path)])
    assert done.exit_code == 0, done.output
    (record,) = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text(encoding="utf-8").splitlines()]
    assert record["made"]["command"].startswith("handscroll") and record["actual"]["read"] == record["plan"]["read"]
    kept = [json.loads(line) for line in (tmp_path / "run" / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [one["tokens"]["seen"] == one["tokens"]["offered"] > 0 for one in kept] == [True, True]
    assert "Long tasks" in (tmp_path / "report.html").read_text(encoding="utf-8")
