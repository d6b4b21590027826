"""Tokens spelled in bytes: joined, they are the text that the decoder gives."""

import random

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from handscroll.base.errors import ConfigError
from handscroll.extend.story import STARTER
from handscroll.text.spelling import spelling
from handscroll.text.tokenizer import Tokenizer
from handscroll.text.training import TokenizerConfig, train_tokenizer
from tests.conftest import shared

TEXT = "Hello,  wörld!\n\t你好 the quick brown fox (1, 2) <unk> 🀄" * 20


def metaspace() -> Tokenizer:
    """A Unigram model in the manner of T5, with an unknown token."""
    words = [("<unk>", 0.0), ("▁", -3.0), ("▁the", -2.0), ("the", -3.0), ("a", -3.0), ("你", -4.0), ("▁quick", -4.0)]
    built = tokenizers.Tokenizer(models.Unigram(words, unk_id=0))
    built.pre_tokenizer = pre_tokenizers.Metaspace()
    built.decoder = decoders.Metaspace()
    return Tokenizer(built.to_str())


def fallback() -> Tokenizer:
    """BPE in the manner of Llama 2: spaces as U+2581, bytes for what is unknown."""
    vocab = {"<unk>": 0, "▁": 1, "a": 2, "▁a": 3, "你": 4} | {f"<0x{b:02X}>": 5 + b for b in range(256)}
    built = tokenizers.Tokenizer(models.BPE(vocab, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    built.normalizer = normalizers.Replace(" ", "▁")
    built.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    built.add_special_tokens(["<s>"])
    return Tokenizer(built.to_str())


def made(name: str) -> Tokenizer:
    if name in ("bpe", "wordpiece", "unigram"):
        return train_tokenizer([TEXT], TokenizerConfig(kind=name, vocab=265))
    if name == "starter":
        return Tokenizer.load(STARTER)
    if name == "babyllama":
        return Tokenizer.load(shared("checkpoints/babyllama-256"))
    if name in ("roberta", "t5"):
        return Tokenizer.load(shared(f"tokenizers/{name}_{'base' if name == 'roberta' else 'small'}_tokenizer.json"))
    return {"metaspace": metaspace, "fallback": fallback}[name]()


@pytest.mark.parametrize(
    "name", ["bpe", "wordpiece", "unigram", "metaspace", "fallback", "starter", "babyllama", "roberta", "t5"]
)
def test_spelled_tokens_join_to_the_decoded_text(name):
    tokenizer = made(name)
    words = spelling(tokenizer)
    assert len(words) == tokenizer.vocab_size
    usable = [n for n, word in enumerate(words) if word is not None]
    assert len(usable) > 0.9 * len([n for n in range(len(words)) if tokenizer.token(n) is not None]) - 2
    start = next(n for n in usable if words[n].isalpha() and words[n].isascii())  # the first token may lose a space
    draw = random.Random(0)
    for _ in range(200):
        ids = [start, *(draw.choice(usable) for _ in range(8))]
        spelled = b"".join(words[n] for n in ids)
        try:
            text = spelled.decode()
        except UnicodeDecodeError:
            continue  # what a decoder makes of broken bytes is its own affair
        assert tokenizer.decode(ids) == text
    encoded = tokenizer.encode("the quick 你", special=False)
    if tokenizer.unknown(encoded) == 0:
        assert b"".join(words[n] for n in encoded).decode().strip() == "the quick 你"


def test_special_and_unknown_tokens_have_no_spelling():
    tokenizer = fallback()
    words = spelling(tokenizer)
    assert words[0] is None and words[tokenizer.vocab_size - 1] is None
    assert words[3] == b" a" and words[5 + 0xE4] == b"\xe4"


def test_a_decoder_that_changes_its_neighbours_is_refused():
    built = tokenizers.Tokenizer(models.WordPiece({"a": 0, "##b": 1, ".": 2, "[UNK]": 3}, unk_token="[UNK]"))
    built.decoder = decoders.WordPiece(cleanup=True)
    with pytest.raises(ConfigError, match="punctuation"):
        spelling(Tokenizer(built.to_str()))
    built.decoder = decoders.WordPiece(cleanup=False)
    assert spelling(Tokenizer(built.to_str())) == [b" a", b"b", b" .", None]
