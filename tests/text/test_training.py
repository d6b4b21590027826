"""Trained tokenizers: exact round trips for any text, the size asked for, the same file every time."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from handscroll.base.errors import ConfigError, DataError
from handscroll.text.pretokenizers import PRETOKENIZERS, cuttable, pieces, words
from handscroll.text.training import ALPHABET, TokenizerConfig, _byte_letters, train_tokenizer
from handscroll.text.unigram import _digamma, _Lattice, train_unigram

ROOT = Path(__file__).parents[2]
DATA = ROOT / "../shared/data"
CORPUS = [
    "The quick brown fox jumps over the lazy dog. It wasn't the dog's fault; they'll run 1234 miles.\n" * 30,
    "却说那猴王荣归故里，自此无心自称。一日，教小猴儿：『你们都去顽耍。』😀\n" * 30,
    Path(argparse.__file__).read_text(encoding="utf-8")[:40_000],
]
KINDS = ["bpe", "wordpiece", "unigram"]
ODD = [
    "", " ", "  ", "\n", "\r\n\r\n", "\t \t", " a", "a ", "a  b", "\u00a0\u3000\u2028", "▁ ▁▁", "Ġ Ċ ##ing ##",
    "\0\x01", "e\u0301é ﬁ ①", "👩‍👩‍👧‍👦🇩🇪", "[UNK]<unk><|endoftext|>", "a" * 500, "\u200b\ufeff", "\U0010ffff",
    "在" * 300, "\n" * 300 + "x",
]  # fmt: skip


@pytest.fixture(scope="module", params=[(kind, name) for kind in KINDS for name in PRETOKENIZERS], ids="-".join)
def trained(request):
    kind, name = request.param
    return train_tokenizer(CORPUS, TokenizerConfig(kind=kind, vocab=400, pretokenizer=name))


@settings(deadline=None, max_examples=100)
@given(text=st.text() | st.lists(st.sampled_from(ODD + CORPUS[0].split(" "))).map("".join))
def test_any_text_comes_back(trained, text):
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert trained.unknown(ids) == 0 and trained.eos not in ids


def test_odd_text_and_size(trained):
    for text in ODD + CORPUS:
        assert trained.decode(trained.encode(text)) == text
    assert trained.vocab_size == 400 and trained.eos == 399
    assert len(trained.encode(CORPUS[0])) < len(CORPUS[0].encode()) / 1.2, "it learned something"


@pytest.mark.parametrize("kind", KINDS)
def test_real_text_comes_back(kind):
    if not DATA.is_dir():
        pytest.skip("../shared/data is absent")
    names = ["text_en/books_valid/stevenson_treasure_island.txt", "text_zh/modern/lu_xun_zhaohua_xishi.txt"]
    texts = [(DATA / name).read_text(encoding="utf-8") for name in names]
    tokenizer = train_tokenizer([text[:60_000] for text in texts], TokenizerConfig(kind=kind, vocab=1500))
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("kind", KINDS)
def test_same_text_same_file_in_every_process(kind):
    # The library's hash maps are seeded once per process, so one process proves nothing.
    code = (
        "from handscroll.text.training import *\nimport random\nr = random.Random(1)\n"
        "w = [''.join(r.choices('abcdefg里说', k=r.randint(1, 9))) for _ in range(400)]\n"
        "t = [' '.join(r.choices(w, k=4000)) for _ in range(3)]\n"
        f"import sys; sys.stdout.write(train_tokenizer(t, TokenizerConfig(kind='{kind}', vocab=600)).fingerprint)"
    )
    run = [sys.executable, "-c", code]
    prints = {subprocess.run(run, capture_output=True, text=True, check=True, cwd=ROOT).stdout for _ in range(3)}
    assert len(prints) == 1 and len(prints.pop()) == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab": 256}, r"\b257\b"),
        ({"special": ("a", "a"), "vocab": 400}, "empty|double"),
        ({"special": ("", "a"), "vocab": 400}, "empty|double"),
        ({"special": ("e",), "vocab": 400, "kind": "wordpiece"}, "'e'"),
        ({"kind": "unigram", "min_frequency": 3}, "min_frequency"),
    ],
)
def test_settings_that_cannot_be_met(changes, message):
    with pytest.raises(ConfigError, match=message):
        train_tokenizer(CORPUS, TokenizerConfig(**changes))


@pytest.mark.parametrize("kind", KINDS)
def test_too_little_text_names_the_size_it_allows(kind):
    with pytest.raises(DataError, match="text"):
        train_tokenizer([], TokenizerConfig(kind=kind))
    with pytest.raises(DataError, match=r"vocab <= \d+") as caught:
        train_tokenizer(CORPUS, TokenizerConfig(kind=kind, vocab=100_000))
    allowed = int(str(caught.value).split("<= ")[1].split(" ")[0])
    assert train_tokenizer(CORPUS, TokenizerConfig(kind=kind, vocab=allowed)).vocab_size == allowed


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="pretokenizer"):
        TokenizerConfig.parse({"pretokenizer": "gpt3"}, "test")


def test_byte_letters_are_the_library_s():
    assert sorted(_byte_letters()) == ALPHABET
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in ["\0 az~\x7f", "é你😀\xa0\xad"]:
        assert level.pre_tokenize_str(text)[0][0] == "".join(_byte_letters()[byte] for byte in text.encode())


def test_gpt2_pattern_is_the_library_s():
    ours = tokenizers.Regex(PRETOKENIZERS["gpt2"])
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(ours, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    theirs = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in ODD + CORPUS:
        assert split.pre_tokenize_str(text) == theirs.pre_tokenize_str(text)


def test_llama3_and_qwen2_patterns_split_as_published():
    # Worked out by hand from the patterns in their tokenizer.json files.
    text = "They'LL pay 12345 €!\n\n  (say),他说 \t x"
    digits = {"llama3": ["123", "45"], "qwen2": list("12345")}
    for name, numbers in digits.items():
        assert words(name, text) == [
            "They", "'LL", " pay", " ", *numbers, " €!\n\n", " ", " (", "say", "),", "他说", " \t", " x",
        ], name  # fmt: skip


# Long texts are cut at safe places: the tokens must be those of the whole text.

AROUND = st.text(alphabet=" \n\r\tabZ的里。，!'s19é\u0301\u3000😀", max_size=12)


@settings(deadline=None, max_examples=150)
@given(
    text=st.lists(
        AROUND
        | st.sampled_from(
            ["a\nb", "。\n说", "\n\na", "x \ny", "'\ns", "it's it'S\n", "'re 'l l", "l'll ", "\u4e0a\u0301 a\u0301 "]
        ),
        max_size=30,
    ).map("".join)
)
def test_cut_text_gives_the_tokens_of_the_whole(trained, text):
    parts = pieces(text, 3)
    assert "".join(parts) == text
    assert [i for part in parts for i in trained.encode(part)] == trained.encode(text)


def test_cuts_happen_and_a_real_book_agrees(trained):
    assert len(pieces("line one\nline two\n" * 50, 20)) > 20
    assert cuttable(json.loads(trained.source))
    if DATA.is_dir():
        book = (DATA / "text_en/books_valid/shelley_frankenstein.txt").read_text(encoding="utf-8")[:250_000]
        whole = tokenizers.Tokenizer.from_str(trained.source).encode(book).ids
        assert len(pieces(book, 200_000)) > 1 and trained.encode(book) == whole
        assert [i for part in pieces(book, 5000) for i in trained.encode(part)] == whole


def test_other_tokenizers_are_not_cut():
    plain = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    assert not cuttable(json.loads(plain.to_str()))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert not cuttable(json.loads(plain.to_str()))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert cuttable(json.loads(plain.to_str()))
    plain.normalizer = tokenizers.normalizers.Strip()
    assert not cuttable(json.loads(plain.to_str()))


# The Unigram trainer against its definition.


def test_lattice_agrees_with_enumeration():
    vocabulary = [b"a", b"b", b"ab", b"ba", b"aba"]
    scores = np.log(np.array([0.3, 0.1, 0.25, 0.15, 0.2]))
    texts, weights = [b"abab", b"ba", b"a"], np.array([2.0, 3.0, 1.0])

    def spellings(text):
        if not text:
            return [[]]
        return [
            [i, *rest] for i, p in enumerate(vocabulary) if text.startswith(p) for rest in spellings(text[len(p) :])
        ]

    expected, best = np.zeros(5), []
    for text, weight in zip(texts, weights, strict=True):
        ways = spellings(text)
        chances = np.array([np.exp(scores[way].sum()) for way in ways])
        best.append(np.log(chances.max()))
        for way, chance in zip(ways, chances / chances.sum(), strict=True):
            np.add.at(expected, way, weight * chance)
    lattice = _Lattice(texts, vocabulary)
    assert np.allclose(lattice.expected(scores, weights), expected, rtol=1e-12)
    assert np.allclose(lattice.best(scores), best, rtol=1e-12)


def test_digamma():
    # Abramowitz and Stegun, table 6.1: psi(1), psi(2), psi(1/2), psi(10).
    known = [-0.5772156649, 0.4227843351, -1.9635100260, 2.2517525891]
    assert np.allclose(_digamma(np.array([1.0, 2.0, 0.5, 10.0])), known, atol=1e-9)
    assert _digamma(np.array([0.0]))[0] == -np.inf


def test_unigram_pieces_are_whole_characters():
    vocabulary = train_unigram({"说说说说": 5, "里说里": 4, "abcabc": 9}, 270)
    assert [piece for piece, _ in vocabulary[:256]] == [bytes([byte]) for byte in range(256)]
    longer = [piece.decode("utf-8") for piece, _ in vocabulary[256:]]
    assert "abcabc" in longer and "说说说说" in longer


def test_tokenizer_json_records_nothing_of_the_run(trained):
    assert {"kind", "pretokenizer"} == set(trained.settings["handscroll"])
    assert json.loads(trained.source)["normalizer"] is None
