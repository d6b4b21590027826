"""Tokenizers into the metadata of GGUF files, as `text/gguf.py` reads it; refused where llama.cpp has nothing alike."""

import base64
import json
from typing import Any

from handscroll.base.errors import ConfigError
from handscroll.text.chat.template import DEFAULT, named_templates
from handscroll.text.gguf import BYTE, CONTROL, NAMES, NORMAL, SPACE, SPLITS, UNKNOWN, UNUSED, USER, WHOLE, tokenizer_of
from handscroll.text.pretokenizers import PRETOKENIZERS
from handscroll.text.tokenizer import Tokenizer

PROBES = (
    "Hello, world! It's 12345 o'clock:  two   spaces\n\n\tand a tab.",
    "  def f(x):\r\n    return x ** 2  # naïve café",
    "北京大学的学生们今天在图书馆里看书。３２１ 👍🏽 Привет العربية",
    "",
    " ",
)
_SPACED = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREFIX = {"type": "Prepend", "prepend": SPACE}
_BYTES = frozenset(f"<0x{number:02X}>" for number in range(256))
_FILE_ROLES = {
    "bos": "bos",
    "eos": "eos",
    "pad": "padding",
    "unk": "unknown",
    "cls": "cls",
    "sep": "seperator",
    "mask": "mask",
}


def metadata_of(tokenizer: Tokenizer, vocab: int, ends: tuple[int, ...]) -> dict[str, Any]:
    """The keys of a tokenizer for a model of `vocab` rows whose texts end with `ends`.

    What is written is read back and compared on hard text, so that no file gives other ids.

    Raises:
        ConfigError: llama.cpp has no such tokenizer; says what it lacks.
    """
    spec = json.loads(tokenizer.source)
    model = spec["model"]
    # Old files do not name the kind of their model: what has merges is BPE.
    unnamed = "BPE" if "merges" in model else "Unigram" if isinstance(model.get("vocab"), list) else ""
    kind = model.get("type") or unnamed
    if kind == "BPE" and model.get("byte_fallback"):
        found = _sentencepiece(spec)
    elif kind == "BPE":
        found = _byte_level(spec)
    elif kind == "WordPiece":
        found = _wordpiece(spec)
    elif kind == "Unigram":
        found = _unigram(spec)
    else:
        raise _refused(f"its model is '{kind}', not BPE, WordPiece or Unigram")
    found = {f"tokenizer.ggml.{key}": value for key, value in found.items()}
    found |= _tokens(tokenizer, spec, vocab, found)
    found |= _specials(tokenizer, ends)
    found |= _templates(tokenizer)
    _check(tokenizer, found)
    return found


def _templates(tokenizer: Tokenizer) -> dict[str, Any]:
    named = named_templates(tokenizer.settings)
    key = "tokenizer.chat_template"
    found = {key if name == DEFAULT else f"{key}.{name}": text for name, text in named.items()}
    others = [name for name in named if name != DEFAULT]
    return found | ({"tokenizer.chat_templates": others} if others else {})


def _refused(why: str) -> ConfigError:
    return ConfigError(f"llama.cpp has no such tokenizer: {why}. Export a model with a tokenizer that it knows")


def _byte_level(spec: dict[str, Any]) -> dict[str, Any]:
    outer = spec.get("pre_tokenizer") or {}
    parts = outer["pretokenizers"] if outer.get("type") == "Sequence" else [outer]
    level = parts[-1] if parts else {}
    if level.get("type") != "ByteLevel" or level.get("add_prefix_space"):
        raise _refused("its BPE neither works on bytes without a space before the text nor falls back to bytes")
    if (spec.get("normalizer") or {"type": "NFC"}) != {"type": "NFC"}:
        raise _refused(f"it changes the text before it is cut ({spec['normalizer'].get('type')})")
    patterns = tuple(part.get("pattern", {}).get("Regex") for part in parts[:-1])
    if level.get("use_regex", True):
        patterns += (PRETOKENIZERS["gpt2"],)
    whole = bool(spec["model"].get("ignore_merges"))
    names = [name for name in NAMES if SPLITS[NAMES[name]] == patterns and (name in WHOLE) == whole]
    if not names:
        raise _refused(f"no pre-tokenizer of its has this split of words: {patterns}")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]]
    return {"model": "gpt2", "pre": names[0], "merges": merges}


def _sentencepiece(spec: dict[str, Any]) -> dict[str, Any]:
    """The scores are the ranks of the merges, which is all that they say."""
    outer = spec.get("normalizer") or {"type": "Sequence", "normalizers": []}
    steps = outer.get("normalizers", [outer])
    metaspace = spec.get("pre_tokenizer") or {}
    prefix = _PREFIX in steps or metaspace.get("prepend_scheme") in ("always", "first")
    if [step for step in steps if step not in (_SPACED, _PREFIX)] or metaspace.get("type") not in (None, "Metaspace"):
        raise _refused("it changes the text in other ways than by writing spaces as '▁'")
    scores: dict[str, float] = {}
    for rank, merge in enumerate(spec["model"]["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        scores.setdefault(left + right, -float(rank))
    lowest = -float(len(spec["model"]["merges"]))
    ordered = sorted(spec["model"]["vocab"].items(), key=lambda item: item[1])
    found = {"scores": [scores.get(token, lowest) for token, _ in ordered], "add_space_prefix": prefix}
    return {"model": "llama", "pre": "default"} | found


def _wordpiece(spec: dict[str, Any]) -> dict[str, Any]:
    normalizer = spec.get("normalizer") or {}
    if (
        normalizer.get("type") != "BertNormalizer"
        or (spec.get("pre_tokenizer") or {}).get("type") != "BertPreTokenizer"
    ):
        raise _refused("its WordPiece has another normaliser or split than BERT's")
    if spec["model"].get("continuing_subword_prefix") != "##" or not normalizer.get("handle_chinese_chars", True):
        raise _refused("its WordPiece is not BERT's")
    lower = bool(normalizer.get("lowercase", True))
    strip = normalizer.get("strip_accents")
    found = {"normalizer.lowercase": lower}
    return {"model": "bert", "pre": "default"} | found | ({} if strip is None else {"normalizer.strip_accents": strip})


def _unigram(spec: dict[str, Any]) -> dict[str, Any]:
    if spec["model"].get("byte_fallback"):
        raise _refused("its unigrams fall back to bytes")
    normalizer = spec.get("normalizer") or {"type": "Sequence", "normalizers": []}
    steps = normalizer.get("normalizers", [normalizer])
    found: dict[str, Any] = {"model": "t5", "pre": "default"}
    for step in steps:
        if step.get("type") != "Precompiled":
            raise _refused(f"it changes the text in a way of its own ({step.get('type')})")
        found["precompiled_charsmap"] = base64.b64decode(step["precompiled_charsmap"])
    outer = spec.get("pre_tokenizer") or {}
    parts = outer.get("pretokenizers", [outer])
    if parts[-1].get("type") != "Metaspace" or any(part.get("type") != "WhitespaceSplit" for part in parts[:-1]):
        raise _refused("it does not split at spaces as T5's does")
    always = parts[-1].get("prepend_scheme", "always" if parts[-1].get("add_prefix_space", True) else "never")
    found |= {"add_space_prefix": always == "always", "remove_extra_whitespaces": len(parts) > 1}
    return found | {"scores": [score for _, score in spec["model"]["vocab"]]}


def _tokens(tokenizer: Tokenizer, spec: dict[str, Any], vocab: int, found: dict[str, Any]) -> dict[str, Any]:
    """Tokens, their types and scores, one for each row of the model."""
    added = {token["id"]: token for token in spec.get("added_tokens") or []}
    pieces, kind = found["tokenizer.ggml.model"] == "bert", found["tokenizer.ggml.model"]
    tokens, types, unknown = [], [], tokenizer.unk
    for number, token in enumerate([*tokenizer.words, *[None] * vocab][:vocab]):
        if token is None:
            tokens.append(f"[PAD{number}]")
            types.append(UNUSED)
            continue
        control = number in added and added[number]["special"]
        named = token.startswith("[") and token.endswith("]") and len(token) > 1
        if pieces and not control and not named:
            token = token.removeprefix("##") if token.startswith("##") else SPACE + token
        tokens.append(token)
        if number == unknown and kind != "gpt2":
            types.append(UNKNOWN)
        elif control:
            types.append(CONTROL)
        elif number in added:
            types.append(USER)
        else:
            types.append(BYTE if kind == "llama" and token in _BYTES else NORMAL)
    made: dict[str, Any] = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    if "tokenizer.ggml.scores" in found:
        scores = found["tokenizer.ggml.scores"]
        lowest = min(scores, default=0.0)
        made["tokenizer.ggml.scores"] = [float(score) for score in scores] + [lowest] * (vocab - len(scores))
    return made


def _specials(tokenizer: Tokenizer, ends: tuple[int, ...]) -> dict[str, Any]:
    numbers = {role: getattr(tokenizer, role) for role in _FILE_ROLES}
    if ends:
        numbers["eos"] = ends[0]
    found = {f"{_FILE_ROLES[role]}_token_id": number for role, number in numbers.items() if number is not None}
    if len(ends) > 1:
        found["eot_token_id"] = ends[1]
    before, after = tokenizer.frame()
    begins = [number for number in (tokenizer.bos, tokenizer.cls) if number is not None]
    if len(before) > 1 or len(after) > 1 or (before and before[0] not in begins):
        raise _refused("it puts several tokens around a text")
    found["add_bos_token"] = bool(before)
    found["add_eos_token"] = bool(after)
    return {f"tokenizer.ggml.{key}": value for key, value in found.items()}


def _check(tokenizer: Tokenizer, metadata: dict[str, Any]) -> None:
    again = Tokenizer(*tokenizer_of(metadata, "the exported tokenizer"))
    for text in PROBES:
        if again.encode(text) != tokenizer.encode(text):
            raise _refused(f"it gives other ids for {text!r} than the nearest one that there is")
