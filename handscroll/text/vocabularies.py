"""`vocab.json` and `merges.txt` (byte-level BPE) as a `tokenizer.json`, in the ways of GPT-2, RoBERTa and Qwen 2."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from handscroll.base.errors import CheckpointError
from handscroll.text.folder import read_object
from handscroll.text.library import reported
from handscroll.text.pretokenizers import byte_level
from handscroll.text.shape import check_vocabulary

WORDS, MERGES = "vocab.json", "merges.txt"
# The class of the tokenizer, or the type of the model -> whose way it is.
_WAYS = {
    "gpt2": ("gpt2", "starcoder2", "gptneo", "opt", "smollm", "phi", "codegen", "granite", "olmo"),
    "roberta": ("roberta", "bart", "mbartlarge50", "longformer", "led", "camembertv2", "blenderbot"),
    "qwen2": ("qwen2", "qwen3", "qwen2moe", "qwen3moe"),
}


def byte_bpe_json(folder: Path, settings: dict[str, Any], model: Mapping[str, Any]) -> str:
    """The `tokenizer.json` of a folder with `vocab.json` and `merges.txt`; `settings` get the roles that it lacks.

    Raises:
        CheckpointError: a file is missing or damaged, or the tokenizer works in another way.
    """
    name = str(settings.get("tokenizer_class") or model.get("model_type") or "gpt2").lower()
    name = name.removesuffix("fast").removesuffix("tokenizer").replace("-", "").replace("_", "")
    way = next((way for way, names in _WAYS.items() if name in names), None)
    if way is None:
        raise CheckpointError(
            f"{folder}: {WORDS} and {MERGES} of a '{name}' tokenizer are not read; write a tokenizer.json with "
            f"transformers: AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')"
        )
    check_vocabulary(read_object(folder / WORDS), f"{folder / WORDS}")
    with reported("be read", f"{folder}: {WORDS} or {MERGES}"):
        built = tokenizers.Tokenizer(models.BPE.from_file(str(folder / WORDS), str(folder / MERGES)))
    blank = bool(settings.get("add_prefix_space", False))
    if way == "qwen2":
        built.normalizer = normalizers.NFC()
        built.pre_tokenizer = byte_level("qwen2")
    else:
        built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=blank)
    built.decoder = decoders.ByteLevel()
    roles = {"bos": "<|endoftext|>", "eos": "<|endoftext|>"}
    if way == "qwen2":
        roles = {"eos": "<|endoftext|>", "pad": "<|endoftext|>"}
    if way == "roberta":
        roles = _framed(built, folder, blank)
    elif built.token_to_id("<|endoftext|>") is not None:
        built.add_special_tokens(["<|endoftext|>"])
    for role, token in roles.items():
        settings.setdefault(f"{role}_token", token)
    return built.to_str()


def _framed(built: tokenizers.Tokenizer, folder: Path, blank: bool) -> dict[str, str]:
    """<s> and </s> around a text; returns the roles of the tokens."""
    first, last = built.token_to_id("<s>"), built.token_to_id("</s>")
    if first is None or last is None:
        raise CheckpointError(f"{folder}: {WORDS} has no <s> and </s>, which stand around a text; copy it again")
    built.post_processor = processors.RobertaProcessing(("</s>", last), ("<s>", first), add_prefix_space=blank)
    known = [name for name in ("<s>", "</s>", "<pad>", "<unk>") if built.token_to_id(name) is not None]
    built.add_special_tokens([*known, "<mask>"])
    return {"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
