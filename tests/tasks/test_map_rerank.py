"""Answers from every block of a document alone: each as asked by hand, the likeliest given, and nothing skipped."""

import pytest

from handscroll.base.errors import CapacityError, ConfigError
from handscroll.data.table.table import Table
from handscroll.generate.asked import NOW
from handscroll.generate.chat import Speaker
from handscroll.tasks.answer import Answer
from handscroll.tasks.finetune import finetune
from handscroll.tasks.prompting import Prompting
from handscroll.tasks.recipe import TuningRecipe
from handscroll.tasks.task import task_from
from handscroll.tasks.writer import Writer, Written
from handscroll.text.pieces import pieces
from tests.tasks.chats import lines, saved, talker

WORDS = "the quick brown fox jumps over lazy dog cat red blue bird green sings north south".split()
DOCUMENT = "".join(f"{' '.join(WORDS[at % 5 :: 1 + at % 3])}. " for at in range(12))
QUESTIONS = ("who jumps?", "which bird sings?")
BLOCK, MOST = 40, 12
TASK = Answer(reading="map-rerank", block=BLOCK, max_tokens=MOST)


@pytest.fixture(scope="module")
def lm():
    return talker(seed=7)  # it ends some of its answers


def examples(document=DOCUMENT, questions=QUESTIONS, **more):
    rows = [{"document": document, "question": one, **more} for one in questions]
    return TASK.read(Table.of(rows, "rows.jsonl"), {}).examples


def by_hand(lm, text, question):
    """The answer to a text that is read whole, how it ended, and its score from the log-probabilities of its tokens."""
    whole = Answer(max_tokens=MOST)
    [example] = examples(text, [question])
    [said] = whole.predict(lm, [example])
    ids = Speaker(lm.tokenizer).render(whole.asked(example), now=NOW).ids
    [alone] = lm.continuations(ids, max_tokens=MOST)
    assert alone.text.strip() == said.output and alone.finish == said.more["finish"]
    losses = lm.nll([*ids, *alone.tokens])[-len(alone.tokens) :]
    return said.output, said.more["finish"], -float(losses.mean())


def test_each_block_is_asked_as_if_it_were_the_document_and_the_likeliest_answer_is_given(lm):
    cut, ends = pieces(DOCUMENT, lm.tokenizer, BLOCK), set()
    for example, found in zip(examples(), TASK.predict(lm, examples()), strict=True):
        hand = [by_hand(lm, one.text.strip(), example["question"]) for one in cut]
        ends |= {end for _, end, _ in hand}
        assert found.more["blocks"] == [[one.start, one.end] for one in cut]
        assert [one["answer"] for one in found.more["answers"]] == [text for text, _, _ in hand]
        assert [one["score"] for one in found.more["answers"]] == pytest.approx([score for *_, score in hand], rel=1e-4)
        best = max(range(len(cut)), key=lambda number: hand[number][2])
        assert (found.output, found.more["finish"]) == hand[best][:2] and best > 0
        assert found.more["block"] == [cut[best].start, cut[best].end]
    assert ends == {"eos", "length"}, "the end of an answer is scored too, and an answer without an end"


@pytest.mark.parametrize("surest, block", [("three", 2), ("number", 0)])
def test_the_place_of_an_answer_lies_in_the_block_that_gave_it_the_earliest_of_equals(lm, monkeypatch, surest, block):
    written = Writer.write

    def told(writer, messages, *more):
        """Every block says what stands in all of them, and those with the word `surest` are surest of it."""
        said = written(writer, messages, *more)
        return type(said)("the fox", "eos", said.prompt, said.reused, 2, -1.0 if surest in str(messages) else -2.0)

    monkeypatch.setattr(Writer, "write", told)
    document = "".join(f"number {word} saw the fox in the north of the south. " for word in ("one", "two", "three"))
    [found] = TASK.predict(lm, examples(document, ["who?"]))
    assert len(found.more["blocks"]) == 3 and found.more["block"] == found.more["blocks"][block]
    (start, end), place = found.more["block"], found.more["evidence"]
    assert start <= place["start"] < place["end"] <= end and document[place["start"] : place["end"]] == "the fox"


def test_a_block_is_read_once_for_all_questions_about_its_document(lm):
    one, other = (TASK.predict(lm, examples(questions=[question]))[0] for question in QUESTIONS)
    both = TASK.predict(lm, examples())
    assert [found.output for found in both] == [one.output, other.output]
    assert both[0].more["tokens"] == one.more["tokens"] | {"read": both[0].more["tokens"]["read"]}
    assert both[1].more["tokens"]["read"] < other.more["tokens"]["read"] / 2
    again = TASK.predict(lm, [*examples(), *examples(document="a cat. " * 20, questions=["who?"]), *examples()])
    assert [found.output for found in again] == [one.output, other.output, again[2].output, one.output, other.output]


def test_all_tokens_of_all_blocks_are_counted_and_the_right_answer_is_scored_after_the_block_that_answered(lm):
    given = examples(answer="the lazy dog")
    for example, found in zip(given, TASK.predict(lm, given), strict=True):
        writer, whole = Writer(lm), Answer(max_tokens=MOST)
        texts = [DOCUMENT[start:end].strip() for start, end in found.more["blocks"]]
        parts = [examples(text, [example["question"]], answer="the lazy dog")[0] for text in texts]
        sizes = [len(writer.prompt(whole.asked(part))) for part in parts]
        assert found.more["tokens"]["prompt"] == sum(sizes)
        assert found.more["tokens"]["document"] == len(lm.encode(DOCUMENT, special=False))
        assert TASK.needed(lm, [example]) == [max(sizes) + MOST]
        number = found.more["blocks"].index(found.more["block"])
        [alone] = whole.predict(lm, [parts[number]])
        assert found.more["truth"]["tokens"] == alone.more["truth"]["tokens"]
        assert found.more["truth"]["nats"] == pytest.approx(alone.more["truth"]["nats"], rel=1e-4)


def test_examples_in_the_prompt_stand_before_every_block(lm):
    shots = examples("a red cat sings.", ["who sings?"], answer="the cat")
    given = examples(questions=QUESTIONS[:1])
    [found] = TASK.prompted(lm, given, Prompting(1, shots))
    [without] = TASK.predict(lm, given)
    added = found.more["tokens"]["prompt"] - without.more["tokens"]["prompt"]
    assert found.more["shots"] == ["rows.jsonl, row 1"] and added % len(found.more["blocks"]) == 0 < added


def test_a_document_may_be_longer_than_the_context_and_a_block_may_not():
    small, done = talker(context=160), []
    document = DOCUMENT * 2
    assert len(small.encode(document)) > 160
    [found] = TASK.predict(small, examples(document, ["who?"]))
    assert len(found.more["answers"]) == len(pieces(document, small.tokenizer, BLOCK))
    large = TASK.model_copy(update={"block": 150})
    with pytest.raises(CapacityError, match=r"row 2: the prompt has .*context is 160.*a smaller task\.block.*extend"):
        given = [*examples("a cat.", ["who?"]), *examples(document, ["who?", "which?"])[1:]]
        large.predict(small, given, done.append)
    assert not done
    with pytest.raises(CapacityError, match=r"task\.reading=blocks or map-rerank"):
        Answer().predict(small, examples(document))
    assert "40 tokens" in TASK.reach(160) and "by itself" in TASK.reach(160)


def test_such_a_reading_is_not_trained(tmp_path):
    data = lines(tmp_path / "train.jsonl", [{"document": "a cat", "question": "who?", "answer": "cat"}] * 8)
    values = {"task": {"name": "answer", "reading": "map-rerank"}, "model": str(saved(tmp_path / "tiny")), "threads": 1}
    values |= {"data": {"train": (str(data),), "held_out": 0}, "tuning": {"way": "full", "steps": 2}}
    with pytest.raises(ConfigError, match=r"map-rerank.*not trained: train with task\.reading=whole or blocks"):
        finetune(TuningRecipe.parse(values, "test"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="map-rerank"):
        task_from({"name": "answer", "reading": "rerank"})


def test_an_answer_without_a_word_is_behind_all_others(lm, monkeypatch):
    count = len(pieces(DOCUMENT, lm.tokenizer, BLOCK))
    said = iter([Written("red" if at == 1 else " ", "eos", 1, 0, 1, -8.0 if at == 1 else -0.1) for at in range(count)])
    monkeypatch.setattr(Writer, "write", lambda *given: next(said))
    [found] = TASK.predict(lm, examples(questions=QUESTIONS[:1]))
    assert found.output == "red" and len(found.more["answers"]) == count > 2
