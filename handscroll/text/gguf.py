"""Tokenizers out of the metadata of GGUF files, as the content of a `tokenizer.json` that gives the ids of llama.cpp.

Four kinds are in circulation (`tokenizer.ggml.model`): `gpt2` (byte-level BPE, whose split of words has a name of its
own), `llama` (SentencePiece BPE, whose merges follow from the scores), `bert` (WordPiece) and `t5` (SentencePiece
unigram).
"""

import base64
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from handscroll.base.errors import CheckpointError, ConfigError, nearest
from handscroll.text.pretokenizers import PRETOKENIZERS

Metadata = Mapping[str, Any]

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type
SPACE = "▁"  # the letter that stands for a space in SentencePiece vocabularies

# Tokens that end a turn or a text whatever type the file gives them; llama.cpp goes by these names too.
ENDS = frozenset(
    """
    <|eot_id|> <|im_end|> <|end|> <end_of_turn> <|endoftext|> </s> <|eom_id|> <EOT> [EOT] [EOS] <|end_of_text|>
    <eos> <|return|> <|call|> <end_of_utterance> <｜end▁of▁sentence｜>
""".split()
)

# The splits of words by the name that `tokenizer.ggml.pre` gives them. Each pattern cuts the pieces of the one before.
_DIGIT, _GPT2, _QWEN2, _LLAMA3 = r"\p{N}", PRETOKENIZERS["gpt2"], PRETOKENIZERS["qwen2"], PRETOKENIZERS["llama3"]
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CUT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
SPLITS: dict[str, tuple[str, ...]] = {
    "gpt-2": (_GPT2,),
    "qwen2": (_QWEN2,),
    "llama-bpe": (_LLAMA3,),
    "smollm": (_DIGIT, _GPT2),
    "bloom": (r" ?[^(\s|.,!?…。，、।۔،)]+",),
    "tekken": ((_CASED % ("", "")) + r"|\p{N}" + _SIGNS,),
    "gpt-4o": ((_CASED % (_CUT, _CUT)) + r"|\p{N}{1,3}" + _SIGNS,),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"),
    "deepseek-coder": ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", _DIGIT),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
}
_SAME = {
    "gpt-2": "phi-2 gigachat roberta-bpe jina-v1-en jina-v2-code jina-v2-es jina-v2-de modern-bert mpt olmo exaone4",
    "qwen2": "deepseek-r1-qwen stablelm2 megrez hunyuan solar-open kormo",
    "llama-bpe": "llama3 llama-v3 falcon3 falcon-h1 pixtral lfm2 dbrx smaug-bpe glm4 chatglm-bpe",
    "smollm": "starcoder refact command-r codeshell exaone minerva-7b",
    "bloom": "gpt3-finnish poro-chat",
    "gpt-4o": "llama4 kanana2",
}
NAMES = {name: name for name in SPLITS} | {other: name for name, same in _SAME.items() for other in same.split()}
# A word that is a token is that token, whatever the merges say; and a text begins with BOS unless the file denies it.
WHOLE = frozenset("llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral lfm2 tekken".split())

_KEYS = frozenset(
    """
    model pre tokens token_type token_type_count scores merges bos_token_id eos_token_id eot_token_id eom_token_id
    unknown_token_id seperator_token_id padding_token_id mask_token_id cls_token_id add_bos_token add_eos_token
    add_sep_token add_space_prefix remove_extra_whitespaces precompiled_charsmap fim_pre_token_id fim_suf_token_id
    fim_mid_token_id fim_pad_token_id fim_rep_token_id fim_sep_token_id prefix_token_id suffix_token_id middle_token_id
    normalizer.lowercase normalizer.strip_accents
""".split()
)
_ROLES = {
    "bos": "bos",
    "eos": "eos",
    "pad": "padding",
    "unk": "unknown",
    "cls": "cls",
    "sep": "seperator",  # spelled so in the files
    "mask": "mask",
}
# Ids of the first files, which named none.
_ASSUMED = {
    "llama": {"bos": 1, "eos": 2, "unk": 0},
    "bert": {"unk": 100, "cls": 101, "sep": 102, "mask": 103, "pad": 0},
    "t5": {"eos": 1, "unk": 2, "pad": 0},
    "gpt2": {},
}


def _all(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is kind for one in value)


# What the values of keys must be: a list for each token, an id of a token, a text.
_FORMS: dict[str, tuple[str, Callable[[Any, int], bool]]] = {
    r"ggml\.tokens": ("a list of texts", lambda value, count: _all(str, value)),
    r"ggml\.merges": ("a list of texts", lambda value, count: _all(str, value)),
    r"ggml\.scores": ("a number for each token", lambda value, count: _all(float, value) and len(value) == count),
    r"ggml\.token_type": (
        "a whole number for each token",
        lambda value, count: _all(int, value) and len(value) == count,
    ),
    r"ggml\.\w+_token_id": ("the number of a token", lambda value, count: type(value) is int and 0 <= value < 1 << 31),
    r"ggml\.(add_\w+|remove_\w+)": ("true or false", lambda value, count: isinstance(value, bool)),
    r"ggml\.(model|pre)|chat_template": ("a text", lambda value, count: isinstance(value, str)),
}


def check_keys(metadata: Metadata, where: str) -> None:
    """Refuse keys about the tokenizer that nobody has looked at, and values that are not what their names say.

    Raises:
        ConfigError: names the key. CheckpointError: the value is of another kind, or lists differ in length.
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    count = len(tokens) if isinstance(tokens, list) else 0
    for name, (wanted, fits) in _FORMS.items():
        for key in (one for one in metadata if re.fullmatch(rf"tokenizer\.({name})", one)):
            if not fits(metadata[key], count):
                raise CheckpointError(f"{where} is damaged: '{key}' is not {wanted}")
    for key in metadata:
        if key.startswith("tokenizer.ggml.") and key.removeprefix("tokenizer.ggml.") not in _KEYS:
            raise ConfigError(f"{where} has the unknown key '{key}', which may change the tokens")
        if key.startswith("tokenizer.rwkv"):
            raise ConfigError(f"{where} has the tokenizer of RWKV, which is not read")


def roles(metadata: Metadata) -> dict[str, int | None]:
    """Ids of special tokens by role (bos, eos, ...), None where there is none."""
    kind, size = metadata["tokenizer.ggml.model"], len(metadata["tokenizer.ggml.tokens"])
    found = {}
    for role, name in _ROLES.items():
        number = metadata.get(f"tokenizer.ggml.{name}_token_id", _ASSUMED[kind].get(role))
        found[role] = number if number is not None and number < size else None
    return found


def ends(metadata: Metadata) -> list[int]:
    """Ids of the tokens that end a text or a turn: those that the file names, then those known by their text."""
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.token_type")
    named = [roles(metadata)["eos"]] + [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eot", "eom")]
    special = [number for number, kind in enumerate(types or ()) if kind in (CONTROL, USER)]
    known = [number for number in special if tokens[number] in ENDS]
    return list(dict.fromkeys(number for number in (*named, *known) if number is not None))


def tokenizer_of(metadata: Metadata, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The contents of `tokenizer.json` and of `tokenizer_config.json` of a GGUF file.

    Raises:
        ConfigError: a kind of tokenizer, a split of words or a key that is not known. CheckpointError: no tokens.
    """
    check_keys(metadata, where)
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in _KINDS:
        raise ConfigError(f"{where} has a tokenizer of the kind '{kind}': {nearest(str(kind), _KINDS)}")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        raise CheckpointError(f"{where} has no tokens")
    types = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    found = roles(metadata)
    settings = {f"{role}_token": None if number is None else tokens[number] for role, number in found.items()}
    if (template := _templates(metadata)) is not None:
        settings["chat_template"] = template
    parts = _KINDS[kind](metadata, tokens, types, where)
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(tokens, types),
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": _frame(metadata, kind, found, tokens),
        "decoder": None,
        **parts,
    }
    return spec, settings


def json_of(metadata: Metadata, where: str) -> str:
    """The `tokenizer.json` of a GGUF file as a text."""
    spec, _ = tokenizer_of(metadata, where)
    model = spec["model"]
    if model.get("merges") and not isinstance(model["merges"][0], str):
        model["merges"] = written(model["merges"])
    return json.dumps(spec, ensure_ascii=False)


def _templates(metadata: Metadata) -> Any:
    """The chat template, or all of them if there are several: a list of names and texts, as in folders."""
    key = "tokenizer.chat_template"
    named = {name.removeprefix(f"{key}."): text for name, text in metadata.items() if name.startswith(f"{key}.")}
    if not named:
        return metadata.get(key)
    usual = {"default": metadata[key]} if key in metadata else {}
    return [{"name": name, "template": text} for name, text in (usual | named).items()]


def _added(tokens: list[str], types: list[int]) -> list[dict[str, Any]]:
    """Tokens that are found in a text before it is cut: control tokens (when asked for), and the user's."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [
        {"id": number, "content": tokens[number], "special": kind != USER or tokens[number] in ENDS, **flags}
        for number, kind in enumerate(types)
        if kind in (CONTROL, USER, UNKNOWN, UNUSED)  # those without a use, such as [PAD151665], have no text either
    ]


def _frame(metadata: Metadata, kind: str, found: Mapping[str, int | None], tokens: list[str]) -> dict | None:
    """What is put before and after a text."""
    pre = metadata.get("tokenizer.ggml.pre", "")
    default_bos = kind in ("llama", "bert") or (kind == "gpt2" and pre in WHOLE)
    begin, end = (found["cls"], found["sep"]) if kind == "bert" else (found["bos"], found["eos"])
    default_end = kind in ("t5", "bert")
    before = [begin] if metadata.get("tokenizer.ggml.add_bos_token", default_bos) and begin is not None else []
    wanted = metadata.get("tokenizer.ggml.add_eos_token", default_end) or kind == "bert"
    after = [end] if wanted and end is not None else []
    if not before and not after:
        return None
    names = [tokens[number] for number in before + after]

    def part(number: int, segment: int) -> dict:
        return {"SpecialToken": {"id": tokens[number], "type_id": segment}}

    single = [part(n, 0) for n in before] + [{"Sequence": {"id": "A", "type_id": 0}}] + [part(n, 0) for n in after]
    second = [{"Sequence": {"id": "B", "type_id": 1}}] + [part(n, 1) for n in after]
    special = {
        name: {"id": name, "ids": [number], "tokens": [name]}
        for name, number in zip(names, before + after, strict=True)
    }
    return {"type": "TemplateProcessing", "single": single, "pair": single + second, "special_tokens": special}


def _vocabulary(tokens: list[str], where: str) -> dict[str, int]:
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        raise CheckpointError(f"{where}: {len(tokens) - len(vocabulary)} tokens stand twice in its vocabulary")
    return vocabulary


BPE = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}


def _byte_level(metadata: Metadata, tokens: list[str], types: list[int], where: str) -> dict[str, Any]:
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if pre not in NAMES:
        raise ConfigError(f"{where} splits words by '{pre}' (tokenizer.ggml.pre): {nearest(pre, NAMES)}")
    if "tokenizer.ggml.merges" not in metadata:
        raise CheckpointError(f"{where} has no tokenizer.ggml.merges, which tokens of the kind 'gpt2' need")
    merges = metadata["tokenizer.ggml.merges"]
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in SPLITS[NAMES[pre]]
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = BPE | {"ignore_merges": pre in WHOLE, "vocab": _vocabulary(tokens, where), "merges": merges}
    return {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, level]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": model,
    }


def _sentencepiece(metadata: Metadata, tokens: list[str], types: list[int], where: str) -> dict[str, Any]:
    vocabulary, scores = _vocabulary(tokens, where), _scores(metadata, tokens, where)
    mergeable = [number for number, kind in enumerate(types) if kind not in (UNKNOWN, CONTROL, BYTE)]
    unknown = roles(metadata)["unk"]
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    back = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        back.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    model = BPE | {
        "unk_token": None if unknown is None else tokens[unknown],
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": vocabulary,
        "merges": merges_of(tokens, scores, mergeable),
    }
    steps = [{"type": "Prepend", "prepend": SPACE}, replaced] if prefix else [replaced]
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "decoder": {"type": "Sequence", "decoders": back},
        "model": model,
    }


def merges_of(tokens: list[str], scores: list[float], mergeable: list[int]) -> list[tuple[str, str]]:
    """The pairs that SentencePiece joins, the best first: the score of a pair is that of the token that it makes.

    The pairs hold the texts of `tokens` themselves: Gemma's 600,000 pairs would take 60 MiB more as texts of their own.
    """
    parts = {tokens[number]: tokens[number] for number in mergeable}
    ranked: list[tuple[str, str]] = []
    for number in sorted(mergeable, key=lambda number: (-scores[number], number)):
        token = tokens[number]
        for cut in range(len(token) - 1, 0, -1):
            left = parts.get(token[:cut])
            if left is not None and (right := parts.get(token[cut:])) is not None:
                ranked.append((left, right))
    return ranked


def written(merges: list[tuple[str, str]]) -> list[str] | list[list[str]]:
    """Pairs as `tokenizer.json` has them: texts with a blank between, unless a token holds a blank itself."""
    blanks = any(" " in left or " " in right for left, right in merges)
    return [list(pair) for pair in merges] if blanks else [" ".join(pair) for pair in merges]


def _scores(metadata: Metadata, tokens: list[str], where: str) -> list[float]:
    scores = metadata.get("tokenizer.ggml.scores")
    if scores is None or len(scores) < len(tokens):
        raise CheckpointError(f"{where} has no score for each of its {len(tokens)} tokens (tokenizer.ggml.scores)")
    return scores


def _wordpiece(metadata: Metadata, tokens: list[str], types: list[int], where: str) -> dict[str, Any]:
    """The files write words with a space before them where BERT's vocabulary writes `##` before what is none."""
    special = {number for number, kind in enumerate(types) if kind in (CONTROL, UNKNOWN)}
    special |= {number for number in roles(metadata).values() if number is not None}

    def written(number: int, token: str) -> str:
        if number in special or (token.startswith("[") and token.endswith("]") and len(token) > 1):
            return token
        return token.removeprefix(SPACE) if token.startswith(SPACE) else f"##{token}"

    words = [written(number, token) for number, token in enumerate(tokens)]
    cased = any(word != word.lower() for number, word in enumerate(words) if number not in special and word[0] != "[")
    lower = metadata.get("tokenizer.ggml.normalizer.lowercase", not cased)
    unknown = roles(metadata)["unk"]
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": metadata.get("tokenizer.ggml.normalizer.strip_accents"),
            "lowercase": lower,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": None if unknown is None else tokens[unknown],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": _vocabulary(words, where),
        },
    }


def _unigram(metadata: Metadata, tokens: list[str], types: list[int], where: str) -> dict[str, Any]:
    scores = _scores(metadata, tokens, where)
    space = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}
    if not metadata.get("tokenizer.ggml.add_space_prefix", True):
        space["prepend_scheme"] = "never"
    steps = []
    if charsmap := metadata.get("tokenizer.ggml.precompiled_charsmap"):
        raw = bytes(number % 256 for number in charsmap)
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(raw).decode()})
    single = metadata.get("tokenizer.ggml.remove_extra_whitespaces", False)
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps} if steps else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "WhitespaceSplit"}, space] if single else [space],
        },
        "decoder": {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True},
        "model": {
            "type": "Unigram",
            "unk_id": roles(metadata)["unk"],
            "vocab": [[token, score] for token, score in zip(tokens, scores, strict=False)],
            "byte_fallback": False,
        },
    }


_KINDS: dict[str, Callable[[Metadata, list[str], list[int], str], dict[str, Any]]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece,
    "bert": _wordpiece,
    "t5": _unigram,
}
