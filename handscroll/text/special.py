"""Which token begins, ends, pads, masks or is the unknown one: from the tokenizer's settings, the model's, or names."""

from collections.abc import Mapping
from typing import Any

ROLES = ("bos", "eos", "pad", "unk", "cls", "sep", "mask")
_NAMES = {
    "bos": ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>", "[BOS]"),
    "eos": ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "[EOS]"),
    "pad": ("<pad>", "[PAD]", "<|pad|>"),
    "cls": ("[CLS]", "<cls>"),
    "sep": ("[SEP]", "<sep>"),
    "mask": ("[MASK]", "<mask>"),
}


def special_ids(
    spec: Mapping[str, Any], vocabulary: Mapping[str, int], settings: Mapping[str, Any], model: Mapping[str, Any]
) -> dict[str, int | None]:
    """Ids by role.

    bos, eos, pad, cls, sep, mask: `tokenizer_config.json` decides (an explicit null means none), then the ids of
    `config.json` that lie inside the vocabulary, then common names. unk is the token that the tokenizer's model
    produces for unknown text; GPT-2's settings name an `unk_token` that byte-level BPE never produces, and counting
    it would be wrong.
    """
    ids: dict[str, int | None] = {"unk": _unknown(spec["model"], vocabulary)}
    for role, names in _NAMES.items():
        if f"{role}_token" in settings:
            ids[role] = _named(settings[f"{role}_token"], vocabulary)
        else:
            guess = next((vocabulary[name] for name in names if name in vocabulary), None)
            stored = _stored(model.get(f"{role}_token_id"), vocabulary)
            ids[role] = guess if stored is None else stored
    return ids


def _unknown(model: Mapping[str, Any], vocabulary: Mapping[str, int]) -> int | None:
    if model.get("type") == "Unigram" or "unk_id" in model:
        return model.get("unk_id")
    name = model.get("unk_token")
    return None if name is None else vocabulary.get(name)


def _named(token: Any, vocabulary: Mapping[str, int]) -> int | None:
    name = token.get("content") if isinstance(token, Mapping) else token
    return vocabulary.get(name) if isinstance(name, str) else None


def _stored(value: Any, vocabulary: Mapping[str, int]) -> int | None:
    first = value[0] if isinstance(value, list) and value else value
    return first if isinstance(first, int) and 0 <= first <= max(vocabulary.values()) else None
