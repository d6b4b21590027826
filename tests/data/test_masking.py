"""Masked rows and pairs: what is hidden, by which rule, and that a stream resumes on the same masks."""

import itertools

import numpy as np
import pytest

from handscroll.base.errors import CheckpointError, ConfigError, DataError
from handscroll.data.batch import collate
from handscroll.data.masking import MaskedRows, Masking
from handscroll.data.pack import Packed
from handscroll.data.pairs import Pairs
from handscroll.data.row import IGNORED
from handscroll.data.sources import TokenSource
from handscroll.text.tokenizer import Tokenizer
from handscroll.text.training import TokenizerConfig, train_tokenizer
from handscroll.text.wordpiece import wordpiece_json
from handscroll.text.words import Words
from tests.naming import naming

LETTERS = [chr(letter) for letter in range(ord("a"), ord("z") + 1)]
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *LETTERS,
    *(f"##{letter}" for letter in LETTERS),
    ",",
    *"我爱北京天",
]
TEXT = "It was the best of times,\nit was the worst of times; 她说：“你好！” It was good.\n" * 30


@pytest.fixture(scope="module")
def bert():
    return Tokenizer(wordpiece_json("\n".join(WORDS), {}, ""))


@pytest.fixture(scope="module")
def source(bert):
    draw = np.random.default_rng(0)
    texts = ["".join(draw.choice([*LETTERS, " "], 150)) for _ in range(12)]
    return TokenSource([np.array(bert.encode(text)) for text in texts])


def rows(stream, count):
    return [row for row, _ in itertools.islice(stream, count)]


def test_the_share_hidden_and_what_stands_in_its_place(bert, source):
    plain = rows(Packed(source, 256, seed=0, epochs=None), 300)
    masked = rows(MaskedRows(Packed(source, 256, seed=0, epochs=None), Masking.of(bert), 3), 300)
    hidden = same = other = 0
    for before, after in zip(plain, masked, strict=True):
        chosen = after.targets != IGNORED
        text = (before.tokens > 4) & (True if before.segment is None else before.segment >= 0)
        assert chosen.sum() == round(0.15 * text.sum()) and not (chosen & ~text).any()
        assert (before.tokens == after.tokens)[~chosen].all()
        assert (after.targets == before.tokens)[chosen].all()
        hidden += (after.tokens[chosen] == 4).sum()
        same += (after.tokens == before.tokens)[chosen].sum()
        other += ((after.tokens != 4) & (after.tokens != before.tokens))[chosen].sum()
        assert (after.tokens[chosen] >= 4).all()
    total = hidden + same + other
    assert total > 8000
    # A random token is the old one once in 58; three standard deviations.
    for count, share in ((hidden, 0.8), (same, 0.1 + 0.1 / 58), (other, 0.1 * 57 / 58)):
        assert abs(count / total - share) < 3 * (share * (1 - share) / total) ** 0.5


def test_masks_depend_on_seed_and_row_alone(bert, source):
    stream = MaskedRows(Packed(source, 64, seed=0, epochs=None), Masking.of(bert), 3)
    first = list(itertools.islice(stream, 40))
    rest = list(itertools.islice(stream.resume(first[16][1]), 23))
    for (row, state), (again, later) in zip(first[17:], rest, strict=True):
        assert np.array_equal(row.tokens, again.tokens) and state == later
    others = rows(MaskedRows(Packed(source, 64, seed=0, epochs=None), Masking.of(bert), 4), 40)
    assert any(not np.array_equal(a.targets, b.targets) for (a, _), b in zip(first, others, strict=True))
    epoch = len(list(Packed(source, 64, seed=None)))
    again = rows(MaskedRows(Packed(source, 64, seed=None, epochs=None), Masking.of(bert), 3), 2 * epoch)
    assert not np.array_equal(again[0].targets, again[epoch].targets), "a text that comes again is masked anew"
    with pytest.raises(CheckpointError, match="rate"):
        next(MaskedRows(Packed(source, 64, seed=0, epochs=None), Masking.of(bert, rate=0.2), 3).resume(first[0][1]))


def test_whole_words(bert, source):
    words = Words(bert)
    masking, sizes = Masking.of(bert, words), []
    for row in rows(MaskedRows(Packed(source, 128, seed=0, epochs=None), masking, 0), 50):
        original = np.where(row.targets != IGNORED, row.targets, row.tokens)
        groups = words.groups(original)
        chosen = row.targets != IGNORED
        text = (original > 4) & (True if row.segment is None else row.segment >= 0)
        partly = [number for number in np.unique(groups) if 0 < chosen[groups == number].mean() < 1]
        assert not partly and 1 <= chosen.sum() <= round(0.15 * text.sum())
        sizes.append(chosen.sum() / text.sum())
    assert np.mean(sizes) > 0.11


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("ab cd", [0, 0, 1, 1]),
        ("ab,cd", [0, 0, 1, 2, 2]),
        ("我爱ab", [0, 1, 2, 2]),
    ],
)
def test_words_of_wordpieces(bert, text, groups):
    assert Words(bert).groups(bert.encode(text, special=False)).tolist() == groups


def test_words_of_byte_pieces():
    """Tokens of a byte-level tokenizer, also those that end inside a character."""
    tokenizer = train_tokenizer([TEXT], TokenizerConfig(vocab=300))
    ids = tokenizer.encode("It was worst 她好 times")
    groups = Words(tokenizer).groups(ids)
    texts = [tokenizer.decode([i for i, g in zip(ids, groups, strict=True) if g == n]).strip() for n in set(groups)]
    assert [text for text in texts if text] == ["It", "was", "worst", "她", "好", "times"]
    assert any("\ufffd" in tokenizer.decode([number]) for number in ids), "a character in several tokens"


def test_chinese_words_need_jieba(bert):
    try:
        import jieba  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(ConfigError, match="chinese"):
            Words(bert, chinese=True)
        return
    words = Words(bert, chinese=True)
    assert words.groups(bert.encode("我爱北京天", special=False)).tolist() == [0, 1, 2, 2, 3]
    assert words.name.startswith("jieba ")


def test_pairs(bert, source):
    stream = Pairs(source, bert, 96, pairs=3, seed=5)
    texts = [document[1:-1].tolist() for document in source]
    joined = ["".join(map(chr, text)) for text in texts]
    labels, short = [], 0
    for row in rows(stream, 200):
        assert row.segment is not None and row.positions is not None
        assert row.kinds is not None and row.labels is not None
        for number in range(3):
            here = row.segment == number
            ids, kinds = row.tokens[here].tolist(), row.kinds[here].tolist()
            cut = ids.index(3) + 1
            first, second = ids[1 : cut - 1], ids[cut:-1]
            assert (ids[0], ids[-1], kinds) == (2, 3, [0] * cut + [1] * (len(ids) - cut)) and first and second
            assert row.positions[here].tolist() == list(range(len(ids)))
            found = row.labels[here]
            assert (found[1:] == IGNORED).all() and found[0] in (0, 1)
            if not found[0]:
                assert any("".join(map(chr, first + second)) in text for text in joined)
            labels.append(int(found[0]))
            short += len(ids) < 30
    assert abs(np.mean(labels) - 0.5) < 0.07 and 20 < short < 100
    first = list(itertools.islice(stream, 6))
    again, _ = next(stream.resume(first[3][1]))
    assert np.array_equal(again.tokens, first[4][0].tokens)
    batch = collate([row for row, _ in first])
    assert batch.kinds is not None and batch.labels is not None and batch.marks().kinds is batch.kinds
    part = batch.part(10, 40)
    assert part.marks().kinds.shape == (6, 30) and part.labels.shape == (6, 30)


def test_pairs_of_a_single_book(bert, source):
    """The second text follows the first, or comes from another part of the book."""
    text = np.concatenate([document[1:-1] for document in source])
    book = TokenSource([np.concatenate([source[0][:1], text, source[0][-1:]])])
    joined, found = "".join(map(chr, text)), []
    for row in rows(Pairs(book, bert, 48, seed=1), 40):
        ids = row.tokens[row.segment == 0].tolist()
        cut = ids.index(3) + 1
        first, second = ("".join(map(chr, part)) for part in (ids[1 : cut - 1], ids[cut:-1]))
        assert first in joined and second in joined
        assert (first + second in joined) or row.labels[0] == 1
        found.append(row.labels[0])
    assert 8 < sum(found) < 32


def test_refusals(bert, source):
    bare = train_tokenizer([TEXT], TokenizerConfig(vocab=280))
    with pytest.raises(ConfigError, match="no mask token"):
        Masking.of(bare)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        Masking.of(bert, rate=1.5)
    with pytest.raises(ConfigError, match=naming("1")):
        Masking.of(bert, masked=0.9, random=0.2)
    with pytest.raises(ConfigError, match=naming("[CLS]", "[SEP]")):
        Pairs(source, bare, 64)
    with pytest.raises(DataError, match="two"):
        Pairs(TokenSource([source[0][:100]]), bert, 64)
    with pytest.raises(ConfigError, match="8 tokens"):
        Pairs(source, bert, 64, pairs=9)
