"""RULER's samples: their form by the published definitions, their size, their scores, the same bytes from a seed."""

import hashlib
import json
import random
import re
import socket
from collections import Counter

import pytest

from handscroll.base.errors import ConfigError, DataError
from handscroll.evaluate.ruler.ask import Ask
from handscroll.evaluate.ruler.bench import VOCABULARIES, Bench, bench, sentences
from handscroll.evaluate.ruler.exams import Exam, Setting, exams, exams_of
from handscroll.evaluate.ruler.frame import chat, plain
from handscroll.evaluate.ruler.score import alike, score, settled
from handscroll.evaluate.ruler.tasks import BEYOND, RULER, TASKS, named
from handscroll.evaluate.ruler.wording import CHINESE, ENGLISH
from handscroll.evaluate.ruler.words import Draw
from handscroll.generate.chat import Speaker
from handscroll.text.tokenizer import Tokenizer
from tests.conftest import ROOT
from tests.evaluate.material import write_book
from tests.naming import naming

NEEDLE = re.compile(r"One of the secret (numbers|identifiers) of (\S+) is: (\S+)\.")
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(ROOT / "handscroll" / "starter")


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    return write_book(tmp_path_factory.mktemp("book") / "book.txt")


@pytest.fixture(scope="module")
def made(tokenizer, book) -> Bench:
    return bench(tokenizer, text=[book])


@pytest.fixture(scope="module")
def published(made, tokenizer) -> dict[str, Exam]:
    """One sample of each task by itself, at 4,096 tokens."""
    setting = Setting(lengths=(4096,), tasks=("all",), samples=1, layout="published")
    return {exam.questions[0].ask.task: exam for exam in exams(made, setting, plain(tokenizer))}


def text_of(exam: Exam) -> str:
    return exam.head.text + exam.questions[0].tail.text


# task: haystack, needles in the text, answers, kind of key and of value (table 2 and appendix B of the paper)
FORMS = {
    "niah_single_1": ("noise", 1, 1, r"[a-z]+-[a-z]+", r"\d{7}"),
    "niah_single_2": ("prose", 1, 1, r"[a-z]+-[a-z]+", r"\d{7}"),
    "niah_single_3": ("prose", 1, 1, r"[a-z]+-[a-z]+", UUID),
    "niah_multikey_1": ("prose", 4, 1, r"[a-z]+-[a-z]+", r"\d{7}"),
    "niah_multikey_2": ("needles", None, 1, r"[a-z]+-[a-z]+", r"\d{7}"),
    "niah_multikey_3": ("needles", None, 1, UUID, UUID),
    "niah_multivalue": ("prose", 4, 4, r"[a-z]+-[a-z]+", r"\d{7}"),
    "niah_multiquery": ("prose", 4, 4, r"[a-z]+-[a-z]+", r"\d{7}"),
}


@pytest.mark.parametrize("task", FORMS)
def test_needles_have_the_published_numbers_of_keys_values_and_questions(published, book, task):
    haystack, count, answers, key, value = FORMS[task]
    exam, (question,) = published[task], published[task].questions
    hidden = NEEDLE.findall(exam.head.text)
    assert all(re.fullmatch(key, k) and re.fullmatch(value, v) for _, k, v in hidden)
    assert len({v for _, _, v in hidden}) == len(hidden)
    asked = {k for _, k, v in hidden if v in question.ask.references}
    assert len(question.ask.references) == answers and all(k in question.tail.text for k in asked)
    assert {v for _, k, v in hidden if k in asked} == set(question.ask.references)
    keys = {k for _, k, _ in hidden}
    if count is None:  # every line is a needle
        lines = exam.head.text.strip().splitlines()[1:]
        assert len(lines) == len(hidden) > 40 and all(NEEDLE.fullmatch(line) for line in lines)
        assert len(keys) == len(hidden) and len(asked) == 1
        return
    assert len(hidden) == count and len(asked) == (4 if task == "niah_multiquery" else 1)
    assert len(keys) == (1 if task in ("niah_multivalue", "niah_single_1", "niah_single_2", "niah_single_3") else 4)
    rest = NEEDLE.sub("", exam.head.text).split("\n", 1)[1]
    if haystack == "noise":
        parts = [f"{one.strip()}." for one in ENGLISH.noise.split(".")]
        assert {line for line in rest.splitlines() if line} <= {ENGLISH.noise, *parts}
    else:
        assert set(sentences(rest, "en")) <= set(sentences(book.read_text(encoding="utf-8"), "en"))


def test_variable_tracking_is_one_chain_of_four_hops_with_one_example(published):
    exam, (question,) = published["vt"], published["vt"].questions
    example, _, text = exam.head.text.rpartition(ENGLISH.chain_about.format(where="following"))
    lines = re.findall(r"VAR ([A-Z]+) = (?:VAR )?([A-Z]+|\d+)", text)
    assert len(lines) == 5 and all(len(name) == 5 for name, _ in lines)
    assert lines[0][1].isdigit() and [value for _, value in lines[1:]] == [name for name, _ in lines[:-1]]
    assert question.ask.references == tuple(name for name, _ in lines) and lines[0][1] in question.ask.question
    solved = re.findall(r"VAR ([A-Z]+) = ", example)
    assert len(solved) == 5 and all(len(name) == 3 for name in solved) and " ".join(solved) in example


@pytest.mark.parametrize("length", [2048, 4096])
def test_common_words_stand_as_often_as_published(made, tokenizer, length):
    setting = Setting(lengths=(length,), tasks=("cwe",), samples=1, layout="published")
    (exam,) = exams(made, setting, plain(tokenizer))
    often, seldom = (30, 3) if length >= 4096 else (6, 1)
    example, _, text = exam.head.text.rpartition(ENGLISH.common_about.format(where="following"))
    entries = re.findall(r"(\d+)\. (\S+)", text)
    assert [int(number) for number, _ in entries] == list(range(1, len(entries) + 1))
    counts = Counter(Counter(word for _, word in entries).values())
    assert counts == {often: 10, seldom: counts[seldom]} and counts[seldom] >= 10
    common = {word for word, count in Counter(word for _, word in entries).items() if count == often}
    assert set(exam.questions[0].ask.references) == common
    solved = re.findall(r"\d+\. (\S+)", example.partition("Question")[0])
    assert Counter(Counter(solved).values()) == ({10: 10, 3: 30} if length >= 4096 else {3: 10, 1: 10})


def test_coded_words_follow_a_zeta_law(published):
    text = published["fwe"].head.text.split("\n", 1)[1]
    counts = Counter(text.split()).most_common()
    assert counts[0][0] == "..." and [word for word, _ in counts[1:4]] == list(
        published["fwe"].questions[0].ask.references
    )
    assert all(re.fullmatch(r"[a-z]{6}", word) for word, _ in counts[1:])
    total = sum(count for _, count in counts)
    shares = [count / total for _, count in counts[:4]]
    assert shares == pytest.approx([0.65, 0.65 / 4, 0.65 / 9, 0.65 / 16], rel=0.15)  # zeta(2), whole numbers only
    assert len(counts) <= 4096 // 50


@pytest.mark.parametrize(("task", "own"), [("qa_1", 1), ("qa_2", 2)])
def test_questions_stand_among_many_documents(published, task, own):
    exam, (question,) = published[task], published[task].questions
    numbers = re.findall(r"^Document (\d+):$", exam.head.text, re.MULTILINE)
    assert [int(n) for n in numbers] == list(range(1, len(numbers) + 1)) and len(numbers) > 20
    assert question.ask.details["documents"] == own and question.ask.rule == "part"
    assert all(answer in exam.head.text for answer in question.ask.references)


def test_a_needle_shares_no_word_with_its_question(made, tokenizer):
    setting = Setting(lengths=(512,), tasks=("unlike",), samples=40, layout="published")
    for exam in exams(made, setting, plain(tokenizer)):
        ask = exam.questions[0].ask
        (needle,) = re.findall(r"In the evening \w+ often walks the dog past [^.]+\.", exam.head.text)
        common = set(re.findall(r"\w+", needle.lower())) & set(re.findall(r"\w+", ask.question.lower()))
        assert common <= {"the", "to", "in", "of", "a"} and ask.references[0] in needle


def test_scattered_facts_lead_to_the_answer(made, tokenizer):
    setting = Setting(
        lengths=(2048,), tasks=("scattered_1", "scattered_2", "scattered_3"), samples=8, layout="published"
    )
    for exam in exams(made, setting, plain(tokenizer)):
        ask, told = exam.questions[0].ask, exam.head.text
        at, carried, path = {}, {}, {}
        for name, verb, what in re.findall(r"(\w+) (went to|picked up|put down) the (\w+)\.", told):
            if verb == "went to":
                at[name] = what
                for thing in [one for one, who in carried.items() if who == name]:
                    path[thing].append(what)
            elif verb == "picked up":
                carried[what] = name
                path[what] = [at[name]]
            else:
                del carried[what]
        subject = re.search(r"(?:Where is|Where was the|Where is the) (\w+)", ask.question.replace("is the", "is"))[1]
        if ask.task == "scattered_1":
            assert at[subject] == ask.references[0]
        else:
            assert path[subject][-1 if ask.task == "scattered_2" else -2] == ask.references[0]


def test_pieces_that_are_alike_have_one_title(published):
    exam, (question,) = published["alike"], published["alike"].questions
    prefix, wanted = question.ask.references
    topic = re.search(r"about (\S+) again", question.ask.question)[1]
    pieces = re.findall(rf"about {topic}\n(.+)\n", exam.head.text)
    assert len(pieces) == 4 and wanted == pieces[question.ask.details["chosen"]] and prefix in question.ask.question


def ask(rule, references, wrong=()):
    return Ask("x", "", "", "", tuple(references), rule, "", 0, tuple(wrong))


def test_scores_are_those_published():
    both = ask("all", ["Alpha", "Beta"])
    assert [score(both, text) for text in ("beta and ALPHA", "alpha", "none")] == [1.0, 0.5, 0.0]
    assert score(ask("part", ["Alpha", "Beta"]), "it is beta") == 1.0
    assert score(ask("all", ["a b"]), "a\x01b") == 0.0  # control characters become line ends, as published
    rambling = " ".join(f"{n:07d}" for n in range(1000, 2000))
    assert score(ask("all", ["0001500"]), rambling) == 1.0  # which is why records keep the length of answers
    place = ask("alone", ["garden"], ["garden", "cellar"])
    said = ("In the garden. Not the cellar.", "the garden or the cellar", "")
    assert [score(place, text) for text in said] == [1.0, 0.0, 0.0]
    assert alike("XYone two", "XY", "one two") == 1.0 and alike("one two", "XY", "one two") == 0.0
    assert alike("XYone", "XY", "one two") == pytest.approx(2 * 3 / 10)
    assert settled(both, "Alpha, Beta") and not settled(both, "Alpha") and not settled(place, "garden")


@pytest.mark.parametrize("layout", ["shared", "published"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_prompt_and_answer_never_exceed_the_length(tokenizer, book, language, layout):
    here = bench(tokenizer, language, text=None if language == "zh" else [book])
    setting = Setting(lengths=(256, 700, 4100), tasks=("all",), samples=1, layout=layout)
    asked = Counter()
    for exam in exams(here, setting, plain(tokenizer)):
        for one in exam.questions:
            total = len(exam.head.ids) + len(one.tail.ids) + one.room
            asked[exam.length] += 1
            assert total <= exam.length and len(here.speller.once(one.ask.said).ids) <= one.room
            assert exam.length < 1000 or total > 0.8 * exam.length or layout == "shared"
        assert all(missing > 0 for _, missing in exam.unfit)
    assert asked[4100] == len(TASKS) and asked[256] >= 1


@pytest.mark.parametrize("layout", ["shared", "published"])
@pytest.mark.parametrize("template", ["base", "few-shot"])
def test_a_task_fits_into_the_length_that_it_is_said_to_need(made, tokenizer, layout, template):
    told = 0
    for task in TASKS:
        setting = Setting(lengths=(256,), tasks=(task,), samples=1, layout=layout, template=template)
        for exam in exams(made, setting, plain(tokenizer)):
            for _, missing in exam.unfit:
                told += 1
                needed = setting.model_copy(update={"lengths": (256 + missing,)})
                assert not [one.unfit for one in exams(made, needed, plain(tokenizer)) if one.unfit], task
    assert told > 0


@pytest.mark.parametrize("layout", ["shared", "published"])
def test_the_tokens_are_those_of_the_whole_text(made, tokenizer, layout):
    """Pieces are encoded one by one; the same text at once has the same tokens."""
    setting = Setting(lengths=(2000,), tasks=("all",), samples=1, layout=layout)
    for exam in exams(made, setting, plain(tokenizer)):
        for one in exam.questions:
            whole = tokenizer.encode(exam.head.text + one.tail.text)
            assert whole == exam.head.ids + one.tail.ids, exam.name


def test_thirteen_tasks_cost_three_times_the_tokens_of_one(made, tokenizer):
    for length, most in ((4096, 3.15), (16384, 3.02)):
        shared = list(exams_of(made, Setting(lengths=(length,), samples=1), plain(tokenizer), length, 0))
        alone = Setting(lengths=(length,), samples=1, layout="published")
        each = [exam.tokens for exam in exams_of(made, alone, plain(tokenizer), length, 0)]
        assert len(shared) == 3 and {q.ask.task for exam in shared for q in exam.questions} == set(RULER)
        assert sum(exam.tokens for exam in shared) <= most * length and sum(each) > 12 * (length - 400)


def test_a_shared_text_holds_what_every_question_needs(made, tokenizer):
    setting = Setting(lengths=(8192,), tasks=("all",), samples=2)
    for exam in exams(made, setting, plain(tokenizer)):
        places = []
        for one in exam.questions:
            if one.ask.task not in ("cwe", "fwe", "unlike", "qa_2") and not one.ask.task.startswith("scattered"):
                right = one.ask.references[-1]
                assert exam.head.text.count(right) >= 1, one.ask.task
                places.append(exam.head.text.index(right) / len(exam.head.text))
        assert len(exam.questions) > 1
    setting = Setting(lengths=(8192,), tasks=("niah_single_2",), samples=20)
    depths = [
        exam.head.text.index(exam.questions[0].ask.references[0]) / len(exam.head.text)
        for exam in exams(made, setting, plain(tokenizer))
    ]
    assert min(depths) < 0.2 and max(depths) > 0.8


def test_the_same_bytes_come_from_a_seed(tokenizer, book):
    def digest(seed: int) -> str:
        found = hashlib.sha256()
        for layout in ("shared", "published"):
            here = bench(tokenizer, text=[book])
            setting = Setting(lengths=(600, 2048), tasks=("all",), samples=1, layout=layout, seed=seed)
            for exam in exams(here, setting, plain(tokenizer)):
                found.update(exam.head.text.encode())
                found.update(repr([(q.tail.text, q.room, q.ask.references) for q in exam.questions]).encode())
        return found.hexdigest()

    assert digest(0) == digest(0) != digest(1)
    assert digest(0) == RECORDED


RECORDED = "5c9c50f82636768cb50730bfbd3cd0da1d38515c909dbfae916b541076a3b077"


def test_a_sample_depends_on_its_own_name_only(made, tokenizer):
    few = Setting(lengths=(1024,), tasks=("niah_single_2",), samples=3, layout="published")
    many = Setting(lengths=(512, 1024), tasks=("ruler",), samples=3, layout="published")
    wanted = [exam.head.ids for exam in exams(made, few, plain(tokenizer))]
    found = {exam.name: exam.head.ids for exam in exams(made, many, plain(tokenizer))}
    assert wanted == [found[f"niah_single_2/1024/{number}"] for number in range(3)]


def test_no_socket_is_opened(tokenizer, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    for language in ("en", "zh"):
        here = bench(tokenizer, language)
        assert len(list(exams(here, Setting(lengths=(1024,), tasks=("all",), samples=1), plain(tokenizer)))) >= 3


def test_chinese_samples_are_chinese(tokenizer):
    here = bench(tokenizer, "zh")
    setting = Setting(lengths=(6000,), samples=1, layout="published")
    for exam in exams(here, setting, plain(tokenizer)):
        text = text_of(exam)
        letters = sum("\u4e00" <= one <= "\u9fff" for one in text)
        least = {"fwe": 0.003, "niah_multikey_3": 0.05}.get(exam.questions[0].ask.task, 0.2)
        assert letters / len(text) > least, exam.name
    exam = next(exams(here, Setting(lengths=(4000,), tasks=("niah_multiquery",), samples=1), plain(tokenizer)))
    assert all(value in exam.head.text for value in exam.questions[0].ask.references)
    assert CHINESE.last in exam.questions[0].tail.text


def test_few_shot_gives_two_solved_samples_before_each_question(made, tokenizer):
    setting = Setting(lengths=(6000,), samples=1, template="few-shot", layout="published")
    for exam in exams(made, setting, plain(tokenizer)):
        about = exam.questions[0].ask.about.format(where="following")
        assert exam.head.text.count(about) == 3, exam.name


def test_a_chat_template_holds_text_and_question_in_a_turn(made, tokenizer):
    with_template = Tokenizer(tokenizer.source, {**tokenizer.settings, "chat_template": TEMPLATE})
    here = bench(with_template, "en", text=None)
    frame = chat(Speaker(with_template))
    setting = Setting(lengths=(1024,), tasks=("niah_single_2",), samples=1, template="chat", layout="published")
    (exam,) = exams(here, setting, frame)
    text = text_of(exam)
    assert text.startswith("[user] Secret numbers are hidden in the following") and "? [end]\n[assistant]" in text
    assert text.endswith("that the text gives is")


TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }} [end]\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def test_a_users_questions_and_documents_are_used(tokenizer, book, tmp_path):
    paragraphs = [
        {
            "context": f"Place {n} lies near water {n}.",
            "qas": [
                {"id": n, "question": f"What is near {n}?", "answers": [{"text": f"water {n}", "answer_start": 20}]},
                {"id": -n, "question": "?", "answers": []},
            ],
        }
        for n in range(40)
    ]
    squad = tmp_path / "squad.json"
    squad.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}), encoding="utf-8")
    here = bench(tokenizer, text=[book], qa=[squad])
    setting = Setting(lengths=(600,), tasks=("qa_1",), samples=3, layout="published")
    for exam in exams(here, setting, plain(tokenizer)):
        assert "lies near water" in exam.head.text and exam.questions[0].ask.references[0] in exam.head.text
    assert here.asked["qa_1"].skipped == 40 and here.record()["qa_1"]["questions"] == 40
    hotpot = tmp_path / "hops.json"
    hotpot.write_text(
        '[{"question": "Which?", "answer": "Oslo", "context": [["A", ["A is in ", "Oslo."]], ["B", ["B knows A."]]]},'
        ' {"question": "Who?", "answer": "Ida", "context": [["C", ["C met Ida."]]]}]',
        encoding="utf-8",
    )
    here = bench(tokenizer, text=[book], hops=[hotpot])
    (exam,) = exams(here, Setting(lengths=(512,), tasks=("qa_2",), samples=1, layout="published"), plain(tokenizer))
    assert exam.questions[0].ask.references in (("Oslo",), ("Ida",)) and "Document 2:\n" in exam.head.text


@pytest.mark.parametrize(
    ("change", "said"),
    [({"question": None}, "question"), ({"context": " "}, "context"), ({"answers": [True]}, "answers")],
)
def test_rows_of_a_user_that_ask_nothing_are_named(tokenizer, tmp_path, change, said):
    row = {"question": "Who?", "answers": [5], "context": "Ann came."}
    (tmp_path / "qa.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(row | change)}\n", encoding="utf-8")
    with pytest.raises(DataError, match=naming("row 2", said)):
        bench(tokenizer, qa=[tmp_path / "qa.jsonl"])


def test_numbers_are_answers_and_rows_over_several_documents_are_named(tokenizer, tmp_path):
    row = {"question": "Who?", "answers": [5], "context": "Ann came."}
    (tmp_path / "qa.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    asked = bench(tokenizer, qa=[tmp_path / "qa.jsonl"]).asked["qa_1"]
    assert asked is not None and asked.items[0].answers == ("5",)
    hops = {"question": None, "answer": "Ann", "context": [["T", ["Ann came."]]]}
    rows = f"{json.dumps(hops | {'question': 'Who?'})}\n\n{json.dumps(hops)}\n"
    (tmp_path / "hops.jsonl").write_text(rows, encoding="utf-8")
    with pytest.raises(DataError, match=naming("row 2", "question")):
        bench(tokenizer, hops=[tmp_path / "hops.jsonl"])


def test_what_cannot_be_is_refused(tokenizer, tmp_path):
    with pytest.raises(ConfigError, match="niah_single_1"):
        named(["niah_singel_1"])
    with pytest.raises(ConfigError, match="256"):
        Setting.parse({"lengths": (100,)}, "x")
    with pytest.raises(ConfigError, match="language"):
        bench(tokenizer, "fr")
    (tmp_path / "bad.json").write_text('[{"question": "?"}]', encoding="utf-8")
    with pytest.raises(DataError, match="context"):
        bench(tokenizer, hops=[tmp_path / "bad.json"])
    assert named(["all"]) == tuple(TASKS) and len(RULER) == 13 and len(BEYOND) == 5


def test_names_never_run_out():
    draw = Draw(random.Random(0), VOCABULARIES["en"])
    names = [draw.new(lambda: draw.random.choice(draw.words.last)) for _ in range(3000)]
    assert len(set(names)) == 3000 and max(map(len, names)) < 40
