"""Streaming text: whole characters, exact joins, stop strings, linear work."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from handscroll.generate.stream import TextStream

CHINESE = "天地玄黃，宇宙洪荒。日月盈昃，辰宿列張。👩🏽‍🚀 emoji 🀄 and ASCII; naïve café — 𠀀𠀁."
TEXTS = [
    CHINESE,
    "plain words only",
    "a",
    "",
    " leading and  double  spaces ",
    "\n\n\t你",
    "🀄🀄🀄🀄",
    "x" * 300,
    "你" * 100,
]


class ByteLevel:
    """One token a byte, and a few merges that cut characters in the middle; 256 is special and skipped."""

    def __init__(self):
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
        vocab = {letter: number for number, letter in enumerate(alphabet)}
        ni, hao = spelled("你")[0][0], spelled("好")[0][0]
        merges = [(ni[2], hao[0]), (ni[0], ni[1]), ("t", "h")]
        for left, right in merges:
            vocab[left + right] = len(vocab)
        self.built = Tokenizer(models.BPE(vocab, merges))
        self.built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self.built.decoder = decoders.ByteLevel()
        self.built.add_special_tokens(["<end>"])
        self.special = self.built.token_to_id("<end>")
        self.byte = {bytes_of: vocab[letter] for bytes_of, letter in _letters().items()}
        self.cost = 0

    def encode(self, text):
        return self.built.encode(text).ids

    def decode(self, ids):
        ids = list(ids)
        self.cost += len(ids)
        return self.built.decode(ids)


def _letters():
    """Byte -> the letter that stands for it in GPT-2's byte alphabet."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [byte for byte in range(256) if byte not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + n) for n, b in enumerate(other)}


class SentencePiece:
    """The decoder of Llama 2: spaces as U+2581, bytes for unknown characters, one leading space stripped."""

    def __init__(self):
        words = ["<s>", "▁", "▁the", "▁word", "s", "a", "b", "▁a", ".", "你", "▁你"]
        self.vocab = {w: n for n, w in enumerate(words)} | {f"<0x{b:02X}>": 100 + b for b in range(256)}
        self.built = Tokenizer(models.BPE(self.vocab, []))
        self.built.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        self.built.add_special_tokens(["<s>"])
        self.cost = 0

    def ids(self, *words):
        return [n for w in words for n in ([self.vocab[w]] if w in self.vocab else self.bytes_of(w))]

    def bytes_of(self, character):
        return [100 + b for b in character.encode()]

    def decode(self, ids):
        ids = list(ids)
        self.cost += len(ids)
        return self.built.decode(ids)


BYTES, PIECES = ByteLevel(), SentencePiece()


def pieces_of(tokenizer, ids, prompt=(), stop=()):
    stream = TextStream(tokenizer, prompt, stop)
    return [*(stream.push(i) for i in ids), stream.finish()], stream


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_whole_characters_and_join_to_the_text(text):
    ids = BYTES.encode(text)
    pieces, _ = pieces_of(BYTES, ids)
    assert "".join(pieces) == text == BYTES.decode(ids)
    assert all("\ufffd" not in piece for piece in pieces)
    assert pieces[-1] == ""  # nothing held back once the last character is whole


def test_text_comes_as_soon_as_a_character_is_whole():
    pieces, _ = pieces_of(BYTES, [BYTES.byte[b] for b in "a你🀄b".encode()])
    assert pieces == ["a", "", "", "你", "", "", "", "🀄", "b", ""]


def test_a_token_that_holds_the_end_of_one_character_and_the_beginning_of_the_next():
    ids = BYTES.encode("你好")
    assert len(ids) == 4  # the second token crosses the border
    pieces, _ = pieces_of(BYTES, ids)
    assert [piece for piece in pieces if piece] == ["你", "好"]


def test_cut_off_character_shows_at_the_end_only():
    pieces, _ = pieces_of(BYTES, [BYTES.byte[b] for b in "ab你".encode()[:-1]])
    assert pieces == ["a", "b", "", "", "\ufffd"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, BYTES.special), max_size=120))
def test_any_byte_tokens_join_to_the_decoded_whole(ids):
    assert "".join(pieces_of(BYTES, ids)[0]) == BYTES.decode(ids)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80), st.text(max_size=40))
def test_prompt_and_continuation_join(prompt, text):
    both = BYTES.encode(prompt), BYTES.encode(text)
    pieces, _ = pieces_of(BYTES, both[1], both[0])
    assert "".join(pieces) == text


def test_a_prompt_that_ends_in_half_a_character():
    you = [BYTES.byte[b] for b in "你".encode()]
    assert pieces_of(BYTES, you[1:], prompt=you[:1])[0] == ["", "你", ""]
    assert "".join(pieces_of(BYTES, BYTES.encode("so"), prompt=you[:2])[0]) == "so"
    literal = BYTES.encode("\ufffd" * 4)
    assert "".join(pieces_of(BYTES, BYTES.encode("\ufffd\ufffdso"), prompt=literal)[0]) == "\ufffd\ufffdso"
    assert "".join(pieces_of(BYTES, you[2:], prompt=[*literal, *you[:2]])[0]) == "你"
    assert pieces_of(BYTES, [], prompt=literal)[0] == [""]


def test_broken_bytes_of_any_length_keep_coming():
    ids = [BYTES.byte[0xFF]] * 1000
    pieces, _ = pieces_of(BYTES, ids)
    assert "".join(pieces) == BYTES.decode(ids)
    assert sum(map(len, pieces[:500])) > 490


def test_special_tokens_are_skipped_anywhere():
    you = [BYTES.byte[b] for b in "你".encode()]
    ids = [BYTES.special, *you[:2], *[BYTES.special] * 400, you[2], BYTES.special, *BYTES.encode(" so")]
    pieces, _ = pieces_of(BYTES, ids)
    assert "".join(pieces) == "你 so"


WORDS = st.lists(
    st.sampled_from(["<s>", "▁", "▁the", "▁word", "s", "a", "▁a", ".", "你", "▁你", "好", "🀄", "é", "☃☃"]),
    max_size=100,
)


@settings(max_examples=300, deadline=None)
@given(WORDS, WORDS)
def test_sentencepiece_texts_join(prompt_words, words):
    prompt, ids = PIECES.ids(*prompt_words), PIECES.ids(*words)
    pieces, _ = pieces_of(PIECES, ids, prompt)
    assert PIECES.decode(prompt) + "".join(pieces) == PIECES.decode(prompt + ids)
    assert all("\ufffd" not in piece for piece in pieces)


def test_sentencepiece_keeps_the_space_after_the_prompt_and_strips_it_without():
    ids = PIECES.ids("▁word", "s")
    assert pieces_of(PIECES, ids)[0] == ["word", "s", ""]
    assert pieces_of(PIECES, ids, PIECES.ids("<s>", "▁the"))[0] == [" word", "s", ""]
    assert pieces_of(PIECES, ids, PIECES.ids("<s>"))[0] == ["word", "s", ""]


def test_sentencepiece_never_takes_back_what_it_gave():
    ids = [*PIECES.ids("a"), *PIECES.bytes_of("好"), PIECES.bytes_of("好")[0], *PIECES.ids("▁the", ".")]
    pieces, _ = pieces_of(PIECES, ids)
    assert "".join(pieces) == "a好\ufffd the."
    ids = [*PIECES.bytes_of("好")] + [100 + 0xFF] * 500 + PIECES.ids("▁the")
    text = "".join(pieces_of(PIECES, ids)[0])
    assert text.startswith("好") and text.endswith("\ufffd the")


def test_stop_strings_over_several_tokens_are_not_shown():
    text = "one two STOP three"
    ids = BYTES.encode(text)
    stream = TextStream(BYTES, stop=("STOP", "never"))
    shown, pushed = "", 0
    while stream.stopped is None:
        shown += stream.push(ids[pushed])
        pushed += 1
        assert "one two STOP"[: len(shown)] == shown and "S" not in shown
    assert (shown, stream.stopped, pushed) == ("one two ", "STOP", len("one two STOP"))
    assert stream.push(ids[0]) == "" and stream.finish() == ""


def test_what_only_began_like_a_stop_string_is_given_late():
    pieces, stream = pieces_of(BYTES, BYTES.encode("STO. ST"), stop=("STOP",))
    assert pieces == ["", "", "", "STO.", " ", "", "", "ST"]
    assert stream.stopped is None


def test_overlapping_beginnings():
    pieces, stream = pieces_of(BYTES, BYTES.encode("aaab rest"), stop=("aab",))
    assert "".join(pieces) == "a" and stream.stopped == "aab"


def test_stop_string_in_chinese_and_inside_one_token():
    pieces, stream = pieces_of(BYTES, BYTES.encode("你好。再見"), stop=("。再",))
    assert "".join(pieces) == "你好" and stream.stopped == "。再"
    assert "".join(pieces_of(PIECES, PIECES.ids("a", "▁word", "s"), stop=("or",))[0]) == "a w"


@settings(max_examples=300, deadline=None)
@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3))
def test_the_stop_string_that_is_complete_first_counts(text, stops):
    ends = [(text.find(stop) + len(stop), -len(stop)) for stop in stops if stop in text]
    want = text if not ends else text[: sum(min(ends))]
    pieces, stream = pieces_of(BYTES, BYTES.encode(text), stop=stops)
    assert "".join(pieces) == want
    assert (stream.stopped is None) == (not ends)


@pytest.mark.parametrize("kind", ["chinese", "special", "broken", "mixed"])
def test_work_per_token_does_not_grow(kind):
    draw = random.Random(0)
    make = {
        "chinese": lambda n: (BYTES.encode(CHINESE) * n)[:n],
        "special": lambda n: [BYTES.special] * n,
        "broken": lambda n: [BYTES.byte[0x80]] * n,
        "mixed": lambda n: [draw.randrange(BYTES.special + 1) for _ in range(n)],
    }[kind]
    costs = []
    for count in (1000, 4000):
        BYTES.cost = 0
        pieces_of(BYTES, make(count), prompt=BYTES.encode(CHINESE) * 50, stop=("never",))
        costs.append(BYTES.cost / count)
    assert costs[1] < 1.2 * costs[0] and costs[1] < 60
