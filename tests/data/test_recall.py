"""Synthetic recall: every target can be known from the row, evaluation keys never appear, rows resume exactly."""

import re
from itertools import islice, pairwise

import numpy as np
import pytest

from handscroll.base.errors import ConfigError, DataError
from handscroll.data.corpus import select
from handscroll.data.recall import RESERVED, Copies, Facts, training_words
from handscroll.data.sources import TokenSource
from handscroll.text.readers import read
from handscroll.text.training import TokenizerConfig, train_tokenizer


@pytest.fixture(scope="module")
def text():
    files = select(["{stdlib}/json/*.py", "{stdlib}/argparse.py"])
    documents = list(read(files))
    tokenizer = train_tokenizer((d.text for d in documents), TokenizerConfig(vocab=600))
    return TokenSource.build(documents, tokenizer), tokenizer


def test_every_counted_copy_stood_before(text):
    """A counted target's token and the one before it stand together earlier in the row."""
    source, _ = text
    for real in (0.0, 1.0):
        stream = Copies(source, 600, 128, seed=3, segment=(4, 12), gap=5, several=3, real=real)
        for number in range(20):
            row = stream.row(number)
            tokens = row.tokens.tolist()
            counted = np.flatnonzero(row.targets >= 0)
            assert len(counted) > 20
            for at in counted:
                pair = (tokens[at], int(row.targets[at]))
                assert pair in set(pairwise(tokens[: at + 1])), (number, at)


def test_answers_follow_their_fact(text):
    source, tokenizer = text
    stream = Facts(source, tokenizer, 256, seed=5, facts=(2, 3), questions=(3, 6), plain=1.0, text=False)
    answers = 0
    for number in range(30):
        row = stream.row(number)
        known = tokenizer.decode([int(t) for t in row.targets if t >= 0])
        whole = tokenizer.decode([*row.tokens.tolist(), int(row.targets[-1])] if row.targets[-1] >= 0 else row.tokens)
        facts = re.findall(r"\nThe secret number of (\w+) is (\d{5})\.", whole)
        assert not {key for key, _ in facts} & set(RESERVED)
        seen: dict[str, str] = {}
        for key, value in facts:
            assert seen.setdefault(key, value) == value, "a key has one value"
        for value in re.findall(r"\d{5}", known):
            assert whole.count(value) >= 2, "an answer was stated before it was asked"
            answers += 1
    assert answers > 40


def test_edges_put_facts_first_and_questions_last(text):
    source, tokenizer = text
    stream = Facts(source, tokenizer, 256, seed=5, plain=1.0, edges=1.0)
    for number in range(10):
        row = stream.row(number)
        assert tokenizer.decode(row.tokens).startswith("\nThe secret number of ")
        assert re.search(r"The secret number of \w+ is \d*", tokenizer.decode(row.tokens[-40:]))


def test_plain_text_counts_and_questions_do_not_leak(text):
    source, tokenizer = text
    with_text, without = (Facts(source, tokenizer, 256, seed=5, text=flag) for flag in (True, False))
    for number in range(5):
        a, b = with_text.row(number), without.row(number)
        assert np.array_equal(a.tokens, b.tokens)
        assert a.counted > b.counted > 0
        assert np.all((b.targets < 0) | (b.targets == a.targets))


def test_rows_resume_exactly(text):
    source, tokenizer = text
    for stream in (Copies(source, 600, 64, seed=1), Facts(source, tokenizer, 128, seed=1)):
        items = list(islice(iter(stream), 6))
        again = list(islice(stream.resume(items[2][1]), 3))
        for (want, _), (got, _) in zip(items[3:], again, strict=True):
            assert np.array_equal(want.tokens, got.tokens) and np.array_equal(want.targets, got.targets)


def test_reserved_words_are_no_training_words(text):
    source, tokenizer = text
    words = training_words(source, tokenizer)
    assert len(words) > 100 and not set(words) & set(RESERVED)


def test_impossible_settings_are_refused(text):
    source, tokenizer = text
    with pytest.raises(ConfigError, match="row"):
        Copies(source, 600, 64, seed=0, segment=(12, 4))
    with pytest.raises(DataError, match="1000000"):
        Facts(source, tokenizer, 1_000_000, seed=0)


@pytest.mark.parametrize("settings", [{"symbols": 700}, {"symbols": 10}, {"symbols": -1}, {"real": float("nan")}])
def test_copies_that_cannot_be_drawn_are_refused(text, settings):
    with pytest.raises(ConfigError, match=rf"copies: .*{next(iter(settings))}.* make no row: give"):
        Copies(text[0], 600, 64, seed=0, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"facts": (4, 1)},
        {"facts": (0, 1)},
        {"facts": (1, 10_000)},
        {"questions": (3, 2)},
        {"questions": (-1, 2)},
        {"questions": (0, 0)},
        {"digits": -1},
        {"digits": 0},
        {"plain": 1.5},
        {"edges": -0.1},
    ],
)
def test_facts_that_cannot_be_drawn_are_refused(text, settings):
    with pytest.raises(ConfigError, match=rf"facts: .*{next(iter(settings))}.* make no row: give"):
        Facts(text[0], text[1], 256, seed=0, **settings)


@pytest.mark.parametrize("plain", [0.5, 1.0])
def test_rows_too_short_for_a_fact_and_a_question_are_refused_with_the_least_length(text, plain):
    settings = {"seed": 0, "plain": plain, "edges": 1.0, "text": False, "facts": (1, 1)}
    with pytest.raises(ConfigError, match=r"rows of 16 tokens .* give rows of \d+ tokens or more") as refused:
        Facts(text[0], text[1], 16, **settings)
    least = int(re.findall(r"rows of (\d+) tokens or more", str(refused.value))[0])
    with pytest.raises(ConfigError, match=f"{least} tokens or more"):
        Facts(text[0], text[1], least - 1, **settings)
    assert 64 < least < 256
    stream = Facts(text[0], text[1], least, **settings)
    assert all(stream.row(number).counted for number in range(300)), "each row has an answer"
