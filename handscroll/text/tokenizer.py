"""Text to token ids and back: one class around a `tokenizer.json`, whatever family it came from."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Self

import numpy as np
import tokenizers
from tokenizers import models

from handscroll.base.errors import CheckpointError, DataError
from handscroll.base.gguf import is_gguf, read_gguf
from handscroll.text.added import completed, looks_special
from handscroll.text.folder import SETTINGS, clear, read_object, read_settings, read_text
from handscroll.text.gguf import json_of, tokenizer_of
from handscroll.text.guard import Guard, Spec, going_on
from handscroll.text.library import reported
from handscroll.text.pretokenizers import SEPARATORS, cuttable, pieces
from handscroll.text.sentencepiece import FILES, sentencepiece_json
from handscroll.text.shape import check_settings, checked_spec, names_of
from handscroll.text.special import ROLES, special_ids
from handscroll.text.vocabularies import MERGES, WORDS, byte_bpe_json
from handscroll.text.wordpiece import wordpiece_json

_JSON = "tokenizer.json"
_WORDPIECE = "vocab.txt"
# Tokens that mark whose turn it is, as chat templates write them.
_MARK = re.compile(r"<[|｜].+[|｜]>|</?(start|end)_of_turn>|</?turn.?>", re.DOTALL)
# The library keeps about 120 bytes per character while it encodes (373 MB for a 3.2 MB book, 2026-11), so long texts
# go in pieces of this many characters where that gives the same tokens.
_PIECE = 200_000


class Tokenizer:
    """Token ids for text and text for token ids.

    Special tokens written out in a text ("<|endoftext|>") are ordinary characters, unless the text is trusted
    (`parse=True`, or a trusted part of `encode_parts`).
    """

    def __init__(self, source: str | Spec, settings: dict[str, Any] | None = None, model: dict[str, Any] | None = None):
        """`source` is a `tokenizer.json` or its content, `settings` is the content of `tokenizer_config.json`, and
        `model` that of the model's `config.json` (for its ids).

        Raises:
            CheckpointError: `source` is not a tokenizer, or `settings` name ids that it does not have.
        """
        self.settings, self._model = dict(settings or {}), model or {}
        model = self._model
        spec = checked_spec(source)
        check_settings(self.settings)
        rows = model.get("vocab_size")
        added = completed(spec, self.settings, rows if isinstance(rows, int) else None)
        self._added = {token["id"]: token for token in added}
        self._names = names_of(spec["model"]) | {token["id"]: token["content"] for token in added}
        vocabulary = {name: number for number, name in self._names.items()}
        self._ids = special_ids(spec, vocabulary, self.settings, model)
        self._declared = added if added != (spec.get("added_tokens") or []) else None
        if self._declared is not None:
            spec = {**spec, "added_tokens": added}
        self._hidden = self._never_text(model)
        self._guard = Guard({number: self._names[number] for number in self._hidden}, self._added)
        guarded = self._guard.spec(spec)
        self._engine = _build(guarded)
        self._on: tokenizers.Tokenizer | None = None
        self._on_spec = going_on({key: part for key, part in guarded.items() if key != "model"})
        self._cuttable = cuttable(spec)
        # The text is rarely asked for and large: the bytes of its file, or what makes it again.
        text = source if isinstance(source, str) else None
        self._source: bytes | Callable[[], str] = (
            (lambda: json.dumps(source, ensure_ascii=False)) if text is None else text.encode()
        )

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a folder that holds `tokenizer.json` (or `vocab.json` and `merges.txt`, BERT's `vocab.txt`, or a
        SentencePiece model), one JSON file, or a GGUF file.

        Truncation and padding stored in the file are not applied: a text is never cut in silence.

        Raises:
            CheckpointError: nothing to read there, a format that must be converted first, or a damaged file.
        """
        here = Path(path)
        if is_gguf(here):
            made, state = cls(*tokenizer_of(read_gguf(here).metadata, str(here))), here.stat()
            made._source = lambda: _again(here, (state.st_mtime_ns, state.st_size))
            return made
        folder = here if here.is_dir() else here.parent
        settings = read_settings(folder)
        model = read_object(folder / "config.json")
        file = here / _JSON if here.is_dir() else here
        if file.is_file():
            return cls(read_text(file), settings, model)
        if not here.is_dir():
            raise CheckpointError(f"{here} does not exist; give a model folder or a tokenizer.json")
        return cls(*_others(folder, settings, model), model)

    @property
    def vocab_size(self) -> int:
        """Highest token id plus one: the smallest embedding table that serves this tokenizer."""
        return max(self._names) + 1

    @property
    def ordinary(self) -> int:
        """The same without the added tokens at the end, which a model may lack."""
        return max((number for number in self._names if number not in self._added), default=-1) + 1

    @property
    def bos(self) -> int | None:
        """Id of the token that begins a text, or None."""
        return self._ids["bos"]

    @property
    def eos(self) -> int | None:
        """Id of the token that ends a text, or None."""
        return self._ids["eos"]

    @property
    def pad(self) -> int | None:
        """Id of the padding token, or None."""
        return self._ids["pad"]

    @property
    def unk(self) -> int | None:
        """Id that unknown text turns into, or None where every text has tokens of its own (byte level)."""
        return self._ids["unk"]

    @property
    def cls(self) -> int | None:
        """Id of the token that stands before an encoder's text, or None."""
        return self._ids["cls"]

    @property
    def sep(self) -> int | None:
        """Id of the token that ends each of an encoder's texts, or None."""
        return self._ids["sep"]

    @property
    def mask(self) -> int | None:
        """Id of the token that hides another one (masked language modelling), or None."""
        return self._ids["mask"]

    @property
    def special(self) -> frozenset[int]:
        """Ids that stand for no text: the special ones, whatever their role."""
        return self._hidden | {number for number in self._ids.values() if number is not None}

    @property
    def written(self) -> dict[str, int]:
        """The special tokens that `encode(parse=True)` finds in a text, with their ids."""
        return {self._names[number]: number for number in self._hidden}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the `tokenizer.json`, for provenance."""
        return hashlib.sha256(self.source.encode("utf-8")).hexdigest()

    @property
    def words(self) -> list[str | None]:
        """The tokens by id, as they stand in the vocabulary."""
        return [self.token(number) for number in range(self.vocab_size)]

    @property
    def source(self) -> str:
        """The `tokenizer.json` as it was loaded or trained, with the added tokens that its other files declare."""
        text = self._source.decode() if isinstance(self._source, bytes) else self._source()
        if self._declared is None:
            return text
        return json.dumps({**json.loads(text), "added_tokens": self._declared}, ensure_ascii=False)

    def encode(self, text: str, special: bool = True, parse: bool = False, follows: bool = False) -> list[int]:
        """Token ids of `text`; `special` adds what the tokenizer's own post-processor adds (such as BOS).

        `parse` turns special tokens written out in the text into their ids: only for text you wrote yourself.
        `follows` says that another text stands before it: the tokenizer puts no blank between the two.
        Time is linear in the length of the text.

        Raises:
            DataError: the text holds half a surrogate pair, or is none.
        """
        return self.encode_parts([(text, parse)], special, follows)

    def encode_parts(
        self, parts: Iterable[tuple[str, bool]], special: bool = False, follows: bool = False
    ) -> list[int]:
        """Token ids of one text in parts (text, trusted), as if it were encoded at once.

        Special tokens that are written in a trusted part become their ids, those in other parts are ordinary text:
        `[("<|user|>", True), (question, False), ("<|end|>", True)]`. The rest is as in `encode`.
        """
        whole = "".join(self._guard.trusted(_text(part)) if trusted else _text(part) for part, trusted in parts)
        engine, ids = self._engine, list[int]()
        if follows and self._on_spec is not None:
            first, whole = self._until_added(whole)
            ids = self._tokens(self._going_on(), first)
        ids += self._tokens(engine, whole)
        if not special:
            return ids
        before, after = self._frame
        return [*before, *ids, *after]

    def encoding(self, text: str) -> tokenizers.Encoding:
        """The tokens of `text` with their places in it, without special tokens around it (`text/framed.py`).

        Raises:
            DataError: as `encode`.
        """
        with _encoding():
            return self._engine.encode(_text(text), add_special_tokens=False)

    def around(self, *encodings: tokenizers.Encoding) -> tokenizers.Encoding:
        """One or two `encodings` with what the tokenizer puts around and between them."""
        first, *second = encodings
        with reported("frame a text"):
            return self._engine.post_process(first, second[0] if second else None)

    def room(self, pair: bool) -> int:
        """How many tokens `around` adds to a text, or to a pair."""
        with reported("frame a text"):
            return self._engine.num_special_tokens_to_add(pair)

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """Text of token ids; special tokens are left out unless `special`.

        Ids beyond the vocabulary have no text: the token tables of many models have more rows than their tokenizer.

        Raises:
            DataError: an id is below 0.
        """
        ids = [int(i) for i in ids]
        if (lowest := min(ids, default=0)) < 0:
            raise DataError(f"token id {lowest} is below 0; padding is no token: leave it out")
        known = [number for number in ids if number in self._names]
        with reported("decode its tokens"):
            return self._guard.shown(self._engine.decode(known, skip_special_tokens=not special))

    def reaching(self, length: int) -> "Tokenizer":
        """The tokenizer of a model for texts of `length` tokens: the limits that its files state are raised to that."""
        source, settings = self.source, dict(self.settings)
        spec = json.loads(source)
        limit, cut = settings.get("model_max_length"), spec.get("truncation")
        if isinstance(limit, int | float) and limit < length:
            settings["model_max_length"] = length
        if isinstance(cut, dict) and cut.get("max_length", length) < length:
            spec["truncation"] = {**cut, "max_length": length}
        if settings == self.settings and spec.get("truncation") == cut:
            return self
        same = spec.get("truncation") == cut
        return Tokenizer(source if same else json.dumps(spec, ensure_ascii=False), settings, self._model)

    def unknown(self, ids: Sequence[int] | np.ndarray) -> int:
        """How many of the ids stand for text that the tokenizer does not know.

        Tokens, not characters: some tokenizers fuse a run of unknown characters into one token.
        """
        return 0 if self.unk is None else int(np.count_nonzero(np.asarray(ids) == self.unk))

    def token(self, number: int) -> str | None:
        """The token as it stands in the vocabulary (byte-level tokens in their own alphabet), or None."""
        return self._names.get(number)

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` (byte for byte as loaded or trained) and `tokenizer_config.json`.

        They hold all that other files of a tokenizer say; those that the folder held are removed.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **self.settings}
        for role in ROLES:
            number = self._ids[role]
            if number is not None:
                settings.setdefault(f"{role}_token", self._names[number])
        _replace(folder / _JSON, self.source)
        _replace(folder / SETTINGS, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
        clear(folder)

    def frame(self) -> tuple[list[int], list[int]]:
        """The ids that `encode` puts before and after a text (BOS, [CLS] ... [SEP]); often empty."""
        before, after = self._frame
        return list(before), list(after)

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        """What the post-processor puts before and after a text, seen on a short one."""
        with reported("encode a text"):
            bare = self._engine.encode("a", add_special_tokens=False).ids
            full = self._engine.encode("a").ids
        start = next((i for i in range(len(full) + 1) if full[i : i + len(bare)] == bare), None)
        if start is None:
            raise CheckpointError("the tokenizer's 'post_processor' leaves out the text; copy or export it again")
        return full[:start], full[start + len(bare) :]

    def _tokens(self, engine: tokenizers.Tokenizer, text: str) -> list[int]:
        """Token ids without a frame; long texts go in pieces where that gives the same tokens."""
        parts = pieces(text, _PIECE) if len(text) > _PIECE and self._cuttable and not self._reaches_across else [text]
        ids: list[int] = []
        with _encoding():
            for part in parts:
                # The batch call leaves out character offsets: twice as fast as `encode` (1.9 against 0.8 MB/s).
                ids += engine.encode_batch_fast([part], add_special_tokens=False)[0].ids
        return ids

    def _going_on(self) -> tokenizers.Tokenizer:
        if self._on is None:
            assert self._on_spec is not None
            self._on = _around(self._on_spec, self._engine.model)
        return self._on

    def _until_added(self, text: str) -> tuple[str, str]:
        """`text` cut before its first added token, behind which the tokenizer begins anew."""
        names = [token["content"] for number, token in self._added.items() if number not in self._hidden]
        places = [place for place in (text.find(name) for name in names) if place >= 0]
        match = self._guard.find(text)
        cut = min([*places, len(text) if match is None else match])
        return text[:cut], text[cut:]

    def _never_text(self, model: Mapping[str, Any]) -> frozenset[int]:
        """The ids that a user's text never becomes: special tokens, and the marks of turns in the chat template."""
        template = str(self.settings.get("chat_template") or "")
        ends = model.get("eos_token_id")
        roles = [*self._ids.values(), *(ends if isinstance(ends, list) else [ends])]
        named = {number for number in roles if isinstance(number, int) and looks_special(self._names.get(number, ""))}
        marks = {number for number, token in self._added.items() if _MARK.fullmatch(token["content"])}
        marks = {number for number in marks if self._names[number] in template}
        return frozenset({number for number, token in self._added.items() if token["special"]} | named | marks)

    @cached_property
    def _reaches_across(self) -> bool:
        """Whether an added token may match, or swallow white space, across a place where text is cut."""
        read = [token for number, token in self._added.items() if number not in self._hidden]
        loose = any(token["lstrip"] or token["rstrip"] for token in self._added.values())
        loose = loose or any(token["single_word"] for token in read)
        return loose or any(set(SEPARATORS) & set(token["content"]) for token in read)


def _text(text: str) -> str:
    if not isinstance(text, str):
        raise DataError(f"expected a text (str), not {type(text).__name__}: {str(text)[:60]}")
    return text


def _again(file: Path, state: tuple[int, int]) -> str:
    """The `tokenizer.json` of a GGUF file that was read before."""
    now = file.stat()
    if (now.st_mtime_ns, now.st_size) != state:
        raise CheckpointError(f"{file} has changed since its tokenizer was read: load the model again")
    return json_of(read_gguf(file).metadata, str(file))


def _build(spec: Spec) -> tokenizers.Tokenizer:
    """The tokenizer of the library. It takes a BPE model as objects: read from a text, Gemma's takes 500 MiB more."""
    with reported("be read", "tokenizer.json"):
        if spec["model"].get("type") == "BPE" and spec["model"].keys() <= {*_BPE, "type", "vocab", "merges"}:
            return _around(spec, _bpe(spec["model"]))
        return tokenizers.Tokenizer.from_str(json.dumps(spec, ensure_ascii=False))


@contextmanager
def _encoding() -> Iterator[None]:
    """What goes wrong while a text is encoded: it is no Unicode, or the tokenizer is damaged."""
    with reported("encode a text"):
        try:
            yield
        except (UnicodeEncodeError, TypeError):
            raise DataError("the text holds half a surrogate pair and is not valid Unicode; repair it") from None


_BPE = "dropout unk_token continuing_subword_prefix end_of_word_suffix fuse_unk byte_fallback ignore_merges".split()


def _bpe(model: Mapping[str, Any]) -> models.BPE:
    merges: Any = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    return models.BPE(model["vocab"], merges, **{key: model[key] for key in _BPE if model.get(key) is not None})


def _around(spec: Spec, model: models.Model) -> tokenizers.Tokenizer:
    """A tokenizer with the parts of `spec` around a model that exists."""
    bare = {**spec, "model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}
    made = tokenizers.Tokenizer.from_str(json.dumps(bare, ensure_ascii=False))
    made.model = model
    for special, several in groupby(spec["added_tokens"], key=lambda token: token["special"]):
        tokens = [tokenizers.AddedToken(**{key: token[key] for key in token if key != "id"}) for token in several]
        made.add_special_tokens(tokens) if special else made.add_tokens(tokens)
    return made


def _others(folder: Path, settings: dict[str, Any], model: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The `tokenizer.json` and the settings of a folder that has other files instead.

    Raises:
        CheckpointError: it has none that are read here.
    """
    present = {file.name for file in folder.iterdir()}
    if {WORDS, MERGES} <= present:
        return byte_bpe_json(folder, settings, model), settings
    if _WORDPIECE in present:
        return wordpiece_json(read_text(folder / _WORDPIECE), settings, str(folder / _WORDPIECE)), settings
    if pieces := next((name for name in FILES if name in present), None):
        return sentencepiece_json(folder / pieces, settings, model)
    found = sorted(present & {WORDS, MERGES})
    what = f"only {', '.join(found)}" if found else "no tokenizer files"
    raise CheckpointError(f"{folder} has no tokenizer.json ({what}); copy it there")


def _replace(file: Path, content: str) -> None:
    """Write beside the target, sync, rename: a reader sees the old file or the new one."""
    draft = file.with_name(file.name + ".tmp")
    with draft.open("w", encoding="utf-8", newline="") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(file)
