"""The bytes that each token adds to a text, for those who compare tokens with grammars."""

import json
import re

from tokenizers import pre_tokenizers

from handscroll.base.errors import ConfigError
from handscroll.text.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def spelling(tokenizer: Tokenizer) -> list[bytes | None]:
    """By id: what a token adds in the middle of a text, in UTF-8 bytes; None for special and unknown-text tokens.

    A SentencePiece token that begins with a space has it, since there is text before it.

    Raises:
        ConfigError: a decoder whose tokens have no text of their own (it changes the text around them).
    """
    spec = json.loads(tokenizer.source)
    kinds = _kinds(spec.get("decoder") or {})
    if "WordPiece" in kinds and any(d.get("cleanup", True) for d in _decoders(spec["decoder"])):
        raise ConfigError("this tokenizer removes spaces before punctuation, so its tokens have no fixed text")
    added = {token["id"]: token for token in spec.get("added_tokens") or []}
    letters = _letters() if "ByteLevel" in kinds else None
    anchor = None if letters else _anchor(tokenizer, added)
    found: list[bytes | None] = []
    for number in range(tokenizer.vocab_size):
        token = tokenizer.token(number)
        if token is None or number == tokenizer.unk or (number in added and added[number]["special"]):
            found.append(None)
        elif number in added:
            found.append(token.encode())
        elif letters:
            found.append(bytes(letters[letter] for letter in token) if set(token) <= set(letters) else token.encode())
        elif "ByteFallback" in kinds and (byte := _BYTE.fullmatch(token)):
            found.append(bytes([int(byte[1], 16)]))
        else:
            assert anchor is not None
            number_before, before = anchor
            found.append(tokenizer.decode([number_before, number])[len(before) :].encode())
    return found


def _anchor(tokenizer: Tokenizer, added: dict[int, dict]) -> tuple[int, str]:
    """A token with some text, before which others are decoded: the first one may lose its space."""
    for number in range(tokenizer.vocab_size):
        token = tokenizer.token(number)
        if token is not None and number not in added and token.isascii() and token.isalnum():
            return number, tokenizer.decode([number])
    raise ConfigError("this tokenizer has no token of plain letters, so its tokens cannot be spelled")


def _letters() -> dict[str, int]:
    """GPT-2's letter of each byte -> the byte: printable ones stand for themselves, the others follow from U+0100."""
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    plain = [byte for byte in range(256) if chr(byte) in alphabet]
    other = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(other)}


def _decoders(decoder: dict) -> list[dict]:
    return [part for inner in decoder["decoders"] for part in _decoders(inner)] if "decoders" in decoder else [decoder]


def _kinds(decoder: dict) -> set[str]:
    return {part.get("type", "") for part in _decoders(decoder)}
