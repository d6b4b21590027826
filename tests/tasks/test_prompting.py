"""Prompts with examples: which stand there, that they are read once, calibrated label words, users kept apart."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from handscroll.base.errors import CapacityError, ConfigError, DataError
from handscroll.cache.reading.store import Store
from handscroll.cli.main import app
from handscroll.data.table.table import Table
from handscroll.tasks.chat import Chat, Instruct
from handscroll.tasks.classify import Classify
from handscroll.tasks.label_words import NOTHING, LabelWords
from handscroll.tasks.prompting import Prompting, notes_of
from handscroll.tasks.task import Example
from handscroll.tasks.writer import Writer
from handscroll.text.chat.template import ChatTemplate
from tests.tasks.chats import lines, saved, talker
from tests.tasks.material import rows

PAIRS = [("the quick fox", "over", "ann"), ("lazy dog", "jumps", "bob"), ("brown fox jumps", "times", "ann")]
POOL = [
    Example(f"pool {n}", {"prompt": q, "messages": _talk, "user": u})
    for n, (q, a, u) in enumerate(PAIRS)
    for _talk in [[{"role": "user", "content": q}, {"role": "assistant", "content": a}]]
]


def asking(text: str, user: str = "ann") -> Example:
    talk = [{"role": "user", "content": text}, {"role": "assistant", "content": "dog"}]
    return Example("row 1", {"messages": talk, "user": user})


@pytest.fixture(scope="module")
def lm():
    return talker()


def asked_ids(monkeypatch, lm, task, examples, prompting):
    """The prompts that the model reads, as texts."""
    seen = []
    write = Writer.write

    def spied(self, messages, *rest):
        seen.append("\n".join(one["content"] for one in messages))
        return write(self, messages, *rest)

    monkeypatch.setattr(Writer, "write", spied)
    return seen, task.prompted(lm, examples, prompting)


def test_shots_are_chosen_and_stand_as_earlier_turns(lm, monkeypatch):
    task = Instruct(max_tokens=3, perplexity=False)
    first = Prompting(2, POOL)
    seen, found = asked_ids(monkeypatch, lm, task, [asking("a fox")], first)
    assert seen == ["the quick fox\nover\nlazy dog\njumps\na fox"] and found[0].more["shots"] == ["pool 0", "pool 1"]
    near = Prompting(1, POOL, "similar").chosen(task, asking("a lazy dog"))
    assert [one.place for one in near] == ["pool 1"]
    assert [one.place for one in Prompting(2, POOL, "similar").chosen(task, asking("brown"))][-1] == "pool 2"
    # The very same question would give its answer away.
    assert [one.place for one in first.chosen(task, asking("the quick fox"))] == ["pool 1", "pool 2"]
    same = Prompting(3, POOL, "random", seed=1).chosen(task, asking("a fox"))
    assert sorted(one.place for one in same) == ["pool 0", "pool 1", "pool 2"]
    with pytest.raises(ConfigError, match="4 shots of 3 examples"):
        Prompting(4, POOL)


def test_an_encoder_may_say_what_is_similar():
    class Lengths:
        def embed(self, texts):
            return torch.tensor([[float(len(text)), 1.0] for text in texts])

    near = Prompting(1, POOL, "similar", encoder=Lengths())
    assert [one.place for one in near.chosen(Instruct(), asking("x" * 200))] == ["pool 2"]  # the longest
    with pytest.raises(ConfigError, match="an encoder finds similar examples"):
        Prompting(1, POOL, "first", encoder=Lengths())


def test_nothing_of_another_user_enters_a_prompt(lm, monkeypatch):
    notes = notes_of(Table.of([{"user": "ann", "text": "ANN likes cats"}, {"user": "bob", "text": "BOB likes dogs"}]))
    prompting = Prompting(2, POOL, "user", notes)
    task = Instruct(max_tokens=3, perplexity=False)
    examples = [asking("one", "ann"), asking("two", "bob"), asking("three", "ann"), asking("four", "cy")]
    seen, found = asked_ids(monkeypatch, lm, task, examples, prompting)
    for text, user in zip(seen, ("ann", "bob", "ann", "cy"), strict=True):
        for other, marks in {"ann": ("ANN", "quick", "brown"), "bob": ("BOB", "lazy"), "cy": ()}.items():
            assert all((mark in text) == (other == user) for mark in marks), (text, user)
    # Neither does anything of another user's keys: each answer is that of a model that saw this user alone.
    for example, one in zip(examples, found, strict=True):
        assert task.prompted(talker(), [example], prompting)[0].output == one.output
    with pytest.raises(DataError, match="no user"):
        task.prompted(lm, [Example("row 9", {"messages": examples[0]["messages"]})], prompting)
    with pytest.raises(DataError, match="needs a user and a text"):
        notes_of(Table.of([{"user": "ann", "text": "x"}, {"user": "", "text": "y"}]))


def test_many_shots_are_read_once_and_from_a_saved_reading(lm, tmp_path):
    task = Instruct(max_tokens=3, perplexity=False)
    pool = [Example(f"pool {n}", {"messages": asking(f"the fox number {n}").values["messages"]}) for n in range(12)]
    plain = task.prompted(lm, [asking("a"), asking("b")], Prompting(12, pool))
    tokens = [one.more["tokens"] for one in plain]
    assert tokens[0]["read"] == tokens[0]["prompt"] and tokens[1]["read"] < 20 < tokens[1]["prompt"]
    store = Store(tmp_path)
    for _ in range(2):
        kept = task.prompted(lm, [asking("a"), asking("b")], Prompting(12, pool, store=store))
        assert [one.output for one in kept] == [one.output for one in plain]
        assert all(one.more["tokens"]["read"] < 20 for one in kept)  # the shots were read for the store


def test_label_words_are_scored_and_calibrated(lm):
    task = Classify(labels=("bad", "good"), words=("lazy", "quick"))
    examples = [
        Example("row 1", {"text": "the fox", "label": "good"}),
        Example("row 2", {"text": "a dog", "label": "bad"}),
    ]
    shots = [Example("s", {"text": "brown", "label": "bad"})]
    found = task.prompted(lm, examples, Prompting(1, shots))

    def logs(text):
        ask = "Which of these fits the text: lazy, quick?\n\nText: {}\n\nAnswer with one of them only."
        turns = [{"role": "user", "content": ask.format("brown")}, {"role": "assistant", "content": "lazy"}]
        ids = Writer(lm).prompt([*turns, {"role": "user", "content": ask.format(text)}])
        end = lm.tokenizer.written["<|im_end|>"]
        pairs = [(ids, [*lm.encode(word, special=False), end]) for word in ("lazy", "quick")]
        return np.array([one.logprob for one in lm.loglikelihood(pairs)])

    bare = np.mean([np.exp(x) / np.exp(x).sum() for x in map(logs, NOTHING)], axis=0)
    for example, one in zip(examples, found, strict=True):
        own = np.exp(logs(example["text"]))
        expected = own / bare / (own / bare).sum()
        assert list(one.more["probabilities"].values()) == pytest.approx(expected.tolist(), rel=1e-4)
        assert one.output == ("bad", "good")[int(expected.argmax())]
        assert one.more["uncalibrated"] == ("bad", "good")[int(own.argmax())]
    with pytest.raises(DataError, match="name two labels or more"):
        Classify().prompted(lm, examples, Prompting())
    with pytest.raises(DataError, match="a different one for each"):
        Classify(labels=("a", "b"), words=("x", "x")).prompted(lm, examples, Prompting())


def test_many_shots_do_not_multiply_the_renderings_of_a_question(lm, monkeypatch):
    """Each rendering writes all shots, so one for each shot would make the time of a question grow by their square."""
    rendered, render = [], ChatTemplate.render
    monkeypatch.setattr(ChatTemplate, "render", lambda self, *a, **k: rendered.append(1) or render(self, *a, **k))
    task = Classify(labels=("bad", "good"), words=("lazy", "quick"))
    shots = [Example(f"s {n}", {"text": f"brown {n}", "label": "bad"}) for n in range(6)]
    counts = []
    for count in (1, 6):
        rendered.clear()
        task.prompted(lm, [Example("row 1", {"text": "the fox", "label": "good"})], Prompting(count, shots))
        counts.append(len(rendered))
    assert counts[0] == counts[1]


def test_both_texts_of_a_pair_are_asked_and_tell_questions_apart(lm, monkeypatch):
    task, seen = Classify(labels=("no", "yes")), []
    surprise = LabelWords._last

    def spied(self, writer, messages, place):
        seen.append("\n".join(one["content"] for one in messages))
        return surprise(self, writer, messages, place)

    monkeypatch.setattr(LabelWords, "_last", spied)
    asked = Example("row 1", {"text": "the quick fox", "pair": "a lazy dog", "label": "no"})
    shots = [Example("s 1", {"text": "the quick fox", "pair": "jumps over", "label": "yes"})]
    task.prompted(lm, [asked], Prompting(1, shots))
    assert all(words in seen[0] for words in ("Text: the quick fox\njumps over", "Text: the quick fox\na lazy dog"))


def test_a_system_message_that_comes_later_stays_where_it_is():
    turns = [{"role": role, "content": role[0]} for role in ("user", "assistant", "system", "user")]
    talk = [{"role": "system", "content": "first"}, *turns]
    [shot] = [Example("s", {"messages": [*talk, {"role": "assistant", "content": "z"}]})]
    framed = Chat()._after_shots([shot], Prompting(), asking("a"), talk)
    assert "".join(one["content"][0] for one in framed) == "f" + "uasuz" + "uasu"


def test_the_command_prompts_a_model_as_it_is(tmp_path):
    model, data = saved(tmp_path / "tiny"), tmp_path / "rows.csv"
    data.write_text("text,label\nthe fox,good\na dog,bad\n", encoding="utf-8")
    pool = lines(tmp_path / "pool.jsonl", [{"text": "brown", "label": "bad"}, {"text": "quick", "label": "good"}])
    command = ["predict", str(model), str(data), "--task", "classify"]
    found = CliRunner().invoke(app, [*command, "--shots", "2", "--examples", str(pool), "--out", str(tmp_path / "o")])
    assert found.exit_code == 0, found.output
    assert "accuracy" in found.output and {row["prediction"] for row in rows(tmp_path / "o")} <= {"bad", "good"}
    for more, words in (
        (["--examples", str(pool)], "say how many"),
        (["--shots", "1", "--choose", "best", "--examples", str(pool)], "Allowed: first, random"),
        (["--shots", "0", "--examples", str(pool)], "no shots are asked for"),
    ):
        wrong = CliRunner().invoke(app, [*command, *more])
        assert wrong.exit_code and words in " ".join((wrong.output + str(wrong.exception)).split())


@pytest.mark.parametrize("shots, what", [(0, "a shorter row"), (1, "fewer shots")])
def test_a_text_that_is_too_long_is_refused_before_labels_of_others_are_scored(shots, what):
    task, done = Classify(labels=("bad", "good")), []
    examples = [Example(f"row {n}", {"text": "the fox " * n, "label": "good"}) for n in (1, 300)]
    prompting = Prompting(shots, [Example("s", {"text": "brown", "label": "bad"})])
    with pytest.raises(CapacityError, match=f"row 300: .*{what}"):
        task.prompted(talker(context=256), examples, prompting, done.append)
    assert not done
