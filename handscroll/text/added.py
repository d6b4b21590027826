"""The added tokens of a folder: those of `tokenizer.json`, and those that its other files declare.

The order and the flags are those of `transformers` (`tokenization_utils_tokenizers.py`): `added_tokens_decoder` of
`tokenizer_config.json` in the order of its ids (without it, `added_tokens.json`), then the tokens with a role, then the
extra special tokens. A token that is not in the vocabulary gets the next free id.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from handscroll.base.errors import CheckpointError
from handscroll.text.special import ROLES

Token = dict[str, Any]
_SPECIAL = re.compile(r"[▁ ]?(<.+>|\[.+\]|\|.+\||\{.+\})", re.DOTALL)
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def completed(spec: dict[str, Any], settings: Mapping[str, Any], rows: int | None) -> list[Token]:
    """The added tokens in the order of their ids, as `tokenizer.json` writes them.

    `rows` is the size of the model's token table, where it is known. A token that only has a role and would lie beyond
    it is left out: the model has no number for it.

    Raises:
        CheckpointError: a file declares an id that the token cannot have.
    """
    table = _Table(spec)
    for token in spec.get("added_tokens") or []:
        table.add(token, "tokenizer.json")
    declared = dict(_declared(settings))
    for token in declared.values():
        table.add(token, "tokenizer_config.json")
    known = {token["content"]: token for token in table.tokens.values()} | declared
    for name, token in _named(settings):
        token = {**known.get(name, token), "special": True}
        place = table.place(name)
        if place is not None and name not in known and not looks_special(name):
            continue  # an ordinary token that also pads (CLIP's "!"): it stays text
        if place is not None or rows is None or table.free < rows:
            table.add({key: value for key, value in token.items() if key != "id"}, "tokenizer_config.json")
    return [table.tokens[number] for number in sorted(table.tokens)]


def looks_special(name: str) -> bool:
    """Whether a token is written as special ones are: in brackets or bars."""
    return _SPECIAL.fullmatch(name) is not None


class _Table:
    """The added tokens by id, and the next free id."""

    def __init__(self, spec: dict[str, Any]):
        vocabulary = spec["model"]["vocab"]
        pairs = (
            vocabulary.items() if isinstance(vocabulary, dict) else ((one[0], n) for n, one in enumerate(vocabulary))
        )
        self._base = dict(pairs)
        self.tokens: dict[int, Token] = {}
        self._ids: dict[str, int] = {}

    @property
    def free(self) -> int:
        return max(len(self._base), max(self.tokens, default=-1) + 1)

    def place(self, name: str) -> int | None:
        return self._ids.get(name, self._base.get(name))

    def add(self, token: Token, where: str) -> None:
        name = token["content"]
        place = self.place(name)
        number = self.free if place is None else place
        if token.get("id", number) != number:
            raise CheckpointError(
                f"{where} gives the token {name!r} the id {token['id']}, but the vocabulary makes it {number}; "
                "the files belong to different tokenizers: copy them again"
            )
        self._ids[name] = number
        self.tokens[number] = {"id": number, "content": name} | {flag: bool(token.get(flag)) for flag in _FLAGS}


def _declared(settings: Mapping[str, Any]) -> Iterator[tuple[str, Token]]:
    """The tokens of `added_tokens_decoder`, by their ids."""
    decoder = settings.get("added_tokens_decoder") or {}
    for number, token in sorted(decoder.items(), key=lambda item: int(item[0])):
        yield token["content"], {**token, "id": int(number)}


def _named(settings: Mapping[str, Any]) -> Iterator[tuple[str, Token]]:
    """The tokens that have a role, then the extra ones."""
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    extra = list(extra.values()) if isinstance(extra, dict) else extra
    for token in (*(settings.get(f"{role}_token") for role in ROLES), *extra):
        if isinstance(token, str) and token:
            yield token, {"content": token}
        elif isinstance(token, dict) and token.get("content"):
            yield token["content"], token
