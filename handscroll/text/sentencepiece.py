"""SentencePiece models (`tokenizer.model`, `spiece.model`) as a `tokenizer.json` that gives the same ids.

A model file holds pieces with scores and kinds, and how a text is normalised: a table of characters, whether runs of
blanks become one, and whether a blank is put before the text. What stands around a text (BOS, EOS), and tokens that are
no pieces, follow from the class of the tokenizer. Sources: `sentencepiece_model.proto` and `model_interface.cc` of
SentencePiece; `convert_slow_tokenizer.py` of transformers.
"""

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.text.gguf import BPE, BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, UNUSED, USER, merges_of, written

FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
LEADING = r"\A +"  # blanks before a text, which some models leave out
MOST_EXTRA = 100_000  # tokens for blanks; T5 has 100
_UNIGRAM, _BPE = 1, 2  # trainer_spec.model_type
# Where a text is cut so that a byte written out in it ("<0x0A>") is no piece.
_BYTE_NAME = "<(?=0x[0-9A-F]{2}>)"
_ROLES = ("bos", "eos", "unk", "pad")


@dataclass(frozen=True)
class Pieces:
    """The pieces by id, and the ids with a role (-1: none)."""

    names: list[str]
    scores: list[float]
    kinds: list[int]
    roles: Mapping[str, int]

    def named(self, role: str) -> str | None:
        number = self.roles[role]
        return self.names[number] if 0 <= number < len(self.names) else None


def sentencepiece_json(file: Path, settings: Mapping[str, Any], model: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The `tokenizer.json` of a SentencePiece model, and its settings with the roles of its pieces.

    Raises:
        CheckpointError: the file is damaged. ConfigError: the package `sentencepiece` is missing, or the model works in
            a way that is not known here.
    """
    proto = _parsed(file)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    if trainer.model_type not in (_UNIGRAM, _BPE) or trainer.treat_whitespace_as_suffix:
        what = "marks the ends of words" if trainer.treat_whitespace_as_suffix else "is neither BPE nor Unigram"
        raise ConfigError(f"{file}: the SentencePiece model {what}, which is not read; use a tokenizer.json")
    pieces = Pieces(
        [piece.piece for piece in proto.pieces],
        [piece.score for piece in proto.pieces],
        [piece.type for piece in proto.pieces],
        {role: getattr(trainer, f"{role}_id") for role in _ROLES},
    )
    style = _style(file, settings, model)
    pieces, extra = _shifted(pieces) if style == "xlm-roberta" else (pieces, [])
    if style == "t5":
        count = settings.get("extra_ids", 100)
        if type(count) is not int or not 0 <= count <= MOST_EXTRA:
            raise _damaged(file, f"'extra_ids' of tokenizer_config.json is {str(count)[:40]}, not 0 to {MOST_EXTRA:,}")
        extra = [f"<extra_id_{number}>" for number in reversed(range(count))]
    made = _unigram(pieces, trainer.byte_fallback) if trainer.model_type == _UNIGRAM else _merged(pieces, trainer)
    inner = any(SPACE in name[1:] for name, kind in zip(pieces.names, pieces.kinds, strict=True) if kind != BYTE)
    # Tokens of the user cut a text before it is normalised, so that each part would get the blank of the text's start.
    first = normalizer.add_dummy_prefix and trainer.model_type == _BPE and USER in pieces.kinds
    prefix = normalizer.add_dummy_prefix and not first
    bytes_of_unigrams = trainer.model_type == _UNIGRAM and trainer.byte_fallback
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(pieces, extra, trainer.model_type),
        "normalizer": _normalizer(normalizer, prefix),
        "pre_tokenizer": _splitter("first" if first else "never", not inner, bytes_of_unigrams),
        "post_processor": _frame(pieces, style, settings),
        "decoder": _decoder(normalizer.add_dummy_prefix),
        "model": made,
    }
    roles = {f"{role}_token": pieces.named(role) for role in _ROLES if pieces.named(role) is not None}
    return json.dumps(spec, ensure_ascii=False), roles | dict(settings)


def _parsed(file: Path) -> Any:
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except ImportError:
        raise ConfigError(
            f"{file} is a SentencePiece model, which the package sentencepiece reads: "
            "pip install 'handscroll[sentencepiece]', or put a tokenizer.json beside it"
        ) from None
    messages: Any = sentencepiece_model_pb2
    proto = messages.ModelProto()
    try:
        proto.ParseFromString(file.read_bytes())
    except (DecodeError, OSError, RuntimeError) as error:
        raise _damaged(file, str(error)) from None
    if not proto.pieces:
        raise _damaged(file, "it has no pieces")
    names = [piece.piece for piece in proto.pieces]
    if len(set(names)) < len(names) or not all(names):
        raise _damaged(file, "pieces stand twice in it, or are empty")
    return proto


def _damaged(file: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{file} is no SentencePiece model ({why}); copy it again, or put a tokenizer.json beside it"
    )


def _style(file: Path, settings: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """How the tokenizer frames a text: as Llama, T5 or XLM-RoBERTa.

    Raises:
        ConfigError: the class of the tokenizer does it in another way.
    """
    name = str(settings.get("tokenizer_class") or model.get("model_type") or "").lower()
    name = name.removesuffix("fast").removesuffix("tokenizer").replace("-", "").replace("_", "")
    if name in ("t5", "mt5", "umt5"):
        return "t5"
    if name == "xlmroberta":
        return "xlm-roberta"
    family = re.sub(r"\d+(text)?$", "", name)
    if family in ("llama", "codellama", "mistral", "mixtral", "gemma", "internlm", "phi", "pretrained", ""):
        return "t5" if not name and file.name == "spiece.model" else "llama"
    raise ConfigError(
        f"{file}: a SentencePiece model of a '{name}' tokenizer is not read; write a tokenizer.json with transformers: "
        f"AutoTokenizer.from_pretrained('{file.parent}').save_pretrained('{file.parent}')"
    )


def _shifted(pieces: Pieces) -> tuple[Pieces, list[str]]:
    """XLM-RoBERTa's ids: fairseq put its own four tokens before the pieces, and <mask> behind them."""
    names = ["<s>", "<pad>", "</s>", "<unk>", *pieces.names[3:]]
    kinds = [CONTROL, CONTROL, CONTROL, UNKNOWN, *pieces.kinds[3:]]
    roles = {"bos": 0, "pad": 1, "eos": 2, "unk": 3}
    return Pieces(names, [0.0] * 4 + pieces.scores[3:], kinds, roles), ["<mask>"]


def _added(pieces: Pieces, extra: list[str], kind: int) -> list[dict[str, Any]]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    apart = (CONTROL, UNKNOWN, UNUSED) if kind == _UNIGRAM else (CONTROL, UNKNOWN, UNUSED, USER)
    found = [
        {"id": number, "content": name, "special": kind != USER, **flags}
        for number, (name, kind) in enumerate(zip(pieces.names, pieces.kinds, strict=True))
        if kind in apart
    ]
    first = len(pieces.names)
    masked = {"lstrip": True}  # as the reference library has it: "a <mask>" hides one word
    return found + [
        {"id": number, "content": name, "special": True, **flags, **(masked if name == "<mask>" else {})}
        for number, name in enumerate(extra, first)
    ]


def _normalizer(spec: Any, prefix: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    if spec.precompiled_charsmap:
        charsmap = base64.b64encode(spec.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if spec.remove_extra_whitespaces:
        replaced = ((LEADING, ""), (rf"[ {SPACE}]+\z", ""), (" {2,}", " "))
        steps += [{"type": "Replace", "pattern": {"Regex": old}, "content": new} for old, new in replaced]
    if prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    return {
        "type": "Sequence",
        "normalizers": [*steps, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}],
    }


def _splitter(scheme: str, split: bool, bytes_of_unigrams: bool) -> dict[str, Any]:
    space = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": split}
    if not bytes_of_unigrams:
        return space
    apart = {"type": "Split", "pattern": {"Regex": _BYTE_NAME}, "behavior": "MergedWithPrevious", "invert": False}
    return {"type": "Sequence", "pretokenizers": [apart, space]}


def _frame(pieces: Pieces, style: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    begins = settings.get("add_bos_token", True) if style == "llama" else style == "xlm-roberta"
    closes = settings.get("add_eos_token", False) if style == "llama" else True
    before = [pieces.named("bos")] if begins and pieces.named("bos") else []
    after = [pieces.named("eos")] if closes and pieces.named("eos") else []
    if not before and not after:
        return None

    def part(name: str | None, segment: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": name, "type_id": segment}}

    def text(name: str, segment: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": segment}}

    single = [*(part(name, 0) for name in before), text("A", 0), *(part(name, 0) for name in after)]
    if style == "xlm-roberta":
        pair = [*single, part(pieces.named("eos"), 0), text("B", 0), part(pieces.named("eos"), 0)]
    else:
        pair = [*single, *(part(name, 1) for name in before), text("B", 1), *(part(name, 1) for name in after)]
    names = {str(name): pieces.names.index(str(name)) for name in (*before, *after)}
    special = {name: {"id": name, "ids": [number], "tokens": [name]} for name, number in names.items()}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


def _decoder(prefix: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _unigram(pieces: Pieces, byte_fallback: bool) -> dict[str, Any]:
    rows = list(zip(pieces.names, pieces.scores, pieces.kinds, strict=True))
    best = max((score for _, score, kind in rows if kind == NORMAL), default=0.0)

    # The user's tokens win over all others.
    vocabulary = [[name, len(name) * best - 0.1 if kind == USER else score] for name, score, kind in rows]
    return {"type": "Unigram", "unk_id": pieces.roles["unk"], "vocab": vocabulary, "byte_fallback": byte_fallback}


def _merged(pieces: Pieces, trainer: Any) -> dict[str, Any]:
    mergeable = [number for number, kind in enumerate(pieces.kinds) if kind not in (UNKNOWN, CONTROL, BYTE, USER)]
    return BPE | {
        "unk_token": pieces.named("unk"),
        "fuse_unk": True,
        "byte_fallback": bool(trainer.byte_fallback),
        "vocab": {name: number for number, name in enumerate(pieces.names)},
        "merges": written(merges_of(pieces.names, pieces.scores, mergeable)),
    }
