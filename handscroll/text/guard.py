"""A `tokenizer.json` whose special tokens have names that no text can hold, so that a text never becomes one of them.

The library finds special tokens wherever their names stand: as added tokens, and as pieces of the vocabulary (Unigram
gives "</s>" as one piece). Here each of them is renamed by random letters, drawn when the tokenizer is loaded. A user's
text is encoded as it is; in a text that is trusted the names are first replaced by the new ones.
"""

import json
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from handscroll.text.sentencepiece import LEADING

Spec = dict[str, Any]


class Guard:
    """The renaming of the special tokens of one tokenizer.

    `names` are the special tokens by id, with the flags of `added_tokens` where they have some.
    """

    def __init__(self, names: Mapping[int, str], added: Mapping[int, Mapping[str, Any]]):
        secret = secrets.token_hex(8)
        self._new = {name: f"x{secret}{number}x" for number, name in names.items()}
        self._old = {new: name for name, new in self._new.items()}
        # The longest name that stands at a place is meant, as in the library.
        ordered = sorted(names.items(), key=lambda item: -len(item[1]))
        found = [_pattern(name, bool(added.get(number, {}).get("single_word"))) for number, name in ordered]
        self._find = re.compile("|".join(found)) if found else None
        self._back = re.compile(rf"x{secret}\d+x")

    def spec(self, spec: Spec) -> Spec:
        """The same tokenizer with the new names. Ids, merges and all other tokens are as they were."""
        model = dict(spec["model"])
        if isinstance(model["vocab"], dict):
            model["vocab"] = {self._new.get(name, name): number for name, number in model["vocab"].items()}
        else:
            model["vocab"] = [[self._new.get(name, name), score] for name, score in model["vocab"]]
        if "merges" in model and self._new.keys() & spec["model"]["vocab"].keys():
            model["merges"] = [merge for merge in model["merges"] if not self._makes(merge)]
        if model.get("unk_token") in self._new:
            model["unk_token"] = self._new[model["unk_token"]]
        added = [self._renamed(token) for token in spec.get("added_tokens") or []]
        return {**spec, "model": model, "added_tokens": added, "truncation": None, "padding": None}

    def trusted(self, text: str) -> str:
        """`text` with the new names for the special tokens that are written in it."""
        return text if self._find is None else self._find.sub(lambda match: self._new[match[0]], text)

    def find(self, text: str) -> int | None:
        """Where the first of the new names stands in `text`."""
        match = self._back.search(text)
        return None if match is None else match.start()

    def shown(self, text: str) -> str:
        """`text` with the names as everybody knows them."""
        return self._back.sub(lambda match: self._old.get(match[0], match[0]), text)

    def _makes(self, merge: str | list[str]) -> bool:
        """Whether a merge makes a special token, or goes on from one."""
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        return left in self._new or right in self._new or left + right in self._new

    def _renamed(self, token: Mapping[str, Any]) -> dict[str, Any]:
        if token["content"] not in self._new:
            return dict(token)
        # `normalized` files of 2023 let the normaliser write a blank before the name, which then stands nowhere.
        flags = {"special": True, "normalized": False, "single_word": False}
        return {**token, **flags, "content": self._new[token["content"]]}


def _pattern(name: str, single_word: bool) -> str:
    return rf"(?<!\w){re.escape(name)}(?!\w)" if single_word else re.escape(name)


def going_on(spec: Spec) -> Spec | None:
    """The tokenizer for a text that goes on from another one: no blank before it. None where there never is one.

    Tokenizers that split at white space and lose it cannot go on within a word; theirs stays as it is.
    """
    before = json.dumps([spec.get("normalizer"), spec.get("pre_tokenizer")])
    normalizer = _changed(spec.get("normalizer"), _no_prefix)
    splitter = spec.get("pre_tokenizer")
    splitter = splitter if _kinds(splitter) & {"WhitespaceSplit", "Whitespace"} else _changed(splitter, _no_prefix)
    if json.dumps([normalizer, splitter]) == before:
        return None
    return {**spec, "normalizer": normalizer, "pre_tokenizer": splitter}


def _no_prefix(part: Spec) -> Spec | None:
    if part.get("type") == "Prepend" or part.get("pattern") == {"Regex": LEADING}:
        return None
    if part.get("type") == "Metaspace":
        kept = {key: value for key, value in part.items() if key not in ("add_prefix_space", "str_rep")}
        return {**kept, "prepend_scheme": "never"}
    return {**part, "add_prefix_space": False} if part.get("type") == "ByteLevel" else part


def _changed(part: Spec | None, change: Callable[[Spec], Spec | None]) -> Spec | None:
    """A normaliser or pre-tokenizer with `change` at each of its leaves; None removes a leaf."""
    if part is None:
        return None
    for key in ("normalizers", "pretokenizers"):
        if key in part:
            inner = [_changed(one, change) for one in part[key]]
            return {**part, key: [one for one in inner if one is not None]}
    return change(part)


def _kinds(part: Spec | None) -> set[str]:
    if part is None:
        return set()
    inner = part.get("pretokenizers") or part.get("normalizers")
    return {kind for one in inner for kind in _kinds(one)} if inner else {str(part.get("type"))}
