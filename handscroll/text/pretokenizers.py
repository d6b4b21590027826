"""The published pre-tokenizers that llama.cpp and transformers know by name, and safe places to cut long text.

Sources: GPT-2 `encoder.py`; `tokenizer.json` of Llama 3 and Qwen 2; llama.cpp `src/llama-vocab.cpp` (same patterns).
Qwen 2 also normalises to NFC; tokenizers trained here do not, because NFC changes text and llama.cpp leaves it out.
"""

import re
from collections.abc import Mapping
from typing import Any

from tokenizers import Regex, pre_tokenizers

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_AFTER = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BEFORE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"

PRETOKENIZERS: dict[str, str] = {
    "gpt2": _GPT2,
    "llama3": _BEFORE + r"\p{N}{1,3}" + _AFTER,
    "qwen2": _BEFORE + r"\p{N}" + _AFTER,
}

# A place between a letter and a sign or space. In the three patterns above no alternative goes on behind a letter with
# a non-letter, so a match ends there whether or not text follows; and none looks behind, so what follows does not
# depend on what stood before. NFC composes nothing across these characters. Marks and digits are left out on purpose.
SEPARATORS = " \n\r\t　，。、；：？！"
_SAFE = re.compile(f"[A-Za-z\u4e00-\u9fff](?=[{SEPARATORS}])")


def byte_level(name: str, longest: int | None = None) -> pre_tokenizers.PreTokenizer:
    """The named split followed by the byte alphabet; `longest` cuts words after that many characters."""
    parts: list[Any] = [pre_tokenizers.Split(Regex(PRETOKENIZERS[name]), "isolated")]
    if longest is not None:
        parts.append(pre_tokenizers.Split(Regex(rf"[\s\S]{{1,{longest}}}"), "isolated"))
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    return pre_tokenizers.Sequence(parts)


def cuttable(spec: Mapping[str, Any]) -> bool:
    """Whether `pieces` may cut text for this tokenizer: byte level, a published split, no normaliser but NFC."""
    if (spec.get("normalizer") or {"type": "NFC"}) != {"type": "NFC"}:
        return False
    outer = spec.get("pre_tokenizer") or {}
    parts = outer["pretokenizers"] if outer.get("type") == "Sequence" else [outer]
    if not parts or parts[-1].get("type") != "ByteLevel" or parts[-1].get("add_prefix_space"):
        return False
    if len(parts) == 1:
        return bool(parts[0].get("use_regex", True))  # the byte level's own split is GPT-2's
    patterns = [part.get("pattern", {}).get("Regex") for part in parts[:-1]]
    return (
        patterns[0] in PRETOKENIZERS.values()
        and not parts[-1].get("use_regex", True)
        and all(part.get("behavior") == "Isolated" and not part.get("invert") for part in parts[:-1])
        and all(re.fullmatch(r"\[\\s\\S\]\{1,\d+\}", pattern or "") for pattern in patterns[1:])
    )


def pieces(text: str, size: int) -> list[str]:
    """`text` in order, cut at safe places at least `size` characters apart (fewer or no cuts where none is safe)."""
    found: list[str] = []
    start = 0
    while start + size < len(text):
        match = _SAFE.search(text, start + size - 1)
        if match is None:
            break
        found.append(text[start : match.end()])
        start = match.end()
    found.append(text[start:])
    return found


def words(name: str, text: str) -> list[str]:
    """The pieces that the named pattern splits `text` into."""
    split = pre_tokenizers.Split(Regex(PRETOKENIZERS[name]), "isolated")
    return [word for word, _ in split.pre_tokenize_str(text)]
