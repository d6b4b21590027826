"""Keeps special tokens that are written in somebody's text apart from those that a chat template writes.

A template joins both into one text. So special tokens in messages are broken by a mark (a letter for private use that
occurs nowhere else) before the template runs. In the text that comes out, an unbroken special token is the template's.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import tokenizers

from handscroll.base.errors import DataError
from handscroll.text.guard import going_on
from handscroll.text.tokenizer import Tokenizer

_PRIVATE = range(0xE000, 0xF900)
_LETTERS = re.compile("[\ue000-\uf8ff]")
NEAR = 4096  # characters from the end in which a special token is looked for first
_NAMES = ("role", "type")  # keys whose values are words that templates compare


class Seal:
    """The special tokens of a tokenizer, and the texts in which they are to be ordinary characters."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._ids = tokenizer.written
        texts = sorted(self._ids, key=len, reverse=True)
        self._letters = [text for text in texts if len(text) == 1]
        self._longer = re.compile("|".join(re.escape(text) for text in texts if len(text) > 1) or "(?!)")
        self._single = "|".join(map(re.escape, self._letters)) or "(?!)"
        # What may become a special token together with the text after it.
        self._begun = {text[:n] for text in texts for n in range(1, len(text)) if not text[:n].isalnum()}
        self._longest = max(map(len, texts), default=0)
        self._engines: dict[tuple[str, bool], tuple[tokenizers.Tokenizer, dict[int, int]]] = {}

    @property
    def tokens(self) -> dict[str, int]:
        """The special tokens by what they are written as."""
        return self._ids

    def mark(self, value: Any, also: str = "") -> str:
        """A letter that occurs neither in the texts of `value` nor in `also`."""
        letters = {letter for text in (*_texts(value), also) for letter in _LETTERS.findall(text)}
        for number in _PRIVATE:
            if chr(number) not in letters:
                return chr(number)
        raise DataError("the texts use every letter of Unicode's private area, so none can mark special tokens")

    def sealed(self, value: Any, mark: str) -> Any:
        """`value` with every special token in its texts broken by `mark`."""
        if isinstance(value, str):
            return self._broken(value, mark)
        if isinstance(value, dict):
            return {
                self._broken(key, mark): one if key in _NAMES and str(one).isidentifier() else self.sealed(one, mark)
                for key, one in value.items()
            }
        return [self.sealed(one, mark) for one in value] if isinstance(value, list) else value

    def encode(self, text: str, mark: str, follows: bool = False) -> list[int]:
        """Token ids of a rendered text: its unbroken special tokens become their ids, the broken ones stay text.

        `follows` is as in `Tokenizer.encode`.
        """
        written = f"\\u{ord(mark):04x}"  # as JSON may have written it
        if mark not in text and written not in text:
            return self._tokenizer.encode(text, special=False, parse=True, follows=follows)
        pieces: list[str] = []
        end = 0
        for match in self._own(text, mark):
            pieces += [_clean(text[end : match.start()], mark, written), f"{mark}{self._ids[match[0]]}{mark}"]
            end = match.end()
        pieces.append(_clean(text[end:], mark, written))
        ids: list[int] = []
        cut = 1 if follows else 0  # only what stands before the first special token goes on from the text before
        for part, goes_on in ((pieces[:cut], True), (pieces[cut:], False)):
            engine, known = self._engine(mark, goes_on)
            found = engine.encode_batch_fast(["".join(part)], add_special_tokens=False)[0]
            ids += [known.get(number, number) for number in found.ids]
        return ids

    def last(self, text: str, mark: str) -> int:
        """Where the last special token of the template's own begins in a rendered text; -1 if there is none."""
        window = NEAR
        while True:
            start = max(0, len(text) - window)
            found = [match.start() for match in self._own(text[start:], mark)]
            # The first one of a window may begin before it, as a part of a longer name.
            if start == 0 or len(found) > 1:
                return start + found[-1] if found else -1
            window *= 8

    def shown(self, text: str, mark: str) -> str:
        """A rendered text as a person should see it: without marks."""
        return _clean(text, mark, f"\\u{ord(mark):04x}")

    def _own(self, text: str, mark: str) -> Iterator[re.Match[str]]:
        """The special tokens that are the template's own: those that no mark breaks."""
        return re.finditer(f"{self._longer.pattern}|(?:{self._single})(?!{mark})", text)

    def _broken(self, text: str, mark: str) -> str:
        for letter in self._letters:
            text = text.replace(letter, letter + mark)
        while self._longer.search(text):  # again, since special tokens may overlap
            text = self._longer.sub(lambda found: found[0][0] + mark + found[0][1:], text)
        ends = range(1, min(self._longest, len(text) + 1))
        return text + mark if any(text[-count:] in self._begun for count in ends) else text

    def _engine(self, mark: str, follows: bool) -> tuple[tokenizers.Tokenizer, dict[int, int]]:
        """The tokenizer in which special tokens have other names: their numbers between marks. And their true ids."""
        if (mark, follows) not in self._engines:
            spec = json.loads(self._tokenizer.source)
            spec = (going_on(spec) if follows else None) or spec
            true: dict[str, int] = {}
            for token in spec.get("added_tokens") or []:
                if token["special"]:
                    token["content"] = f"{mark}{token['id']}{mark}"
                true[token["content"]] = token["id"]
            engine = tokenizers.Tokenizer.from_str(json.dumps(spec, ensure_ascii=False))
            engine.no_truncation()
            engine.no_padding()
            found = {number: engine.token_to_id(content) for content, number in true.items()}
            known: dict[int, int] = {theirs: number for number, theirs in found.items() if theirs is not None}
            self._engines[mark, follows] = (engine, known)
        return self._engines[mark, follows]


def _clean(text: str, mark: str, written: str) -> str:
    return text.replace(mark, "").replace(written, "")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _texts(key)
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
