"""Small models for the doctor, ours and the reference library's, with a tokenizer that fits them."""

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedTokenizerFast

from handscroll.lm import LM
from handscroll.text.tokenizer import Tokenizer
from tests.conformance.families import FORMS, scatter
from tests.text.chat_tokenizers import built

SPECIALS = "<s> </s> <pad> <|im_start|> <|im_end|>"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def spec(specials: str = SPECIALS) -> str:
    return built(specials)


def settings(**more: Any) -> dict[str, Any]:
    """The `tokenizer_config.json` of a healthy chat model."""
    named = {"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<pad>", "padding_side": "left"}
    return named | {"chat_template": CHATML, "add_bos_token": False} | more


def spelling(specials: str = SPECIALS, **more: Any) -> PreTrainedTokenizerFast:
    """The same tokenizer in the reference library."""
    import tokenizers

    return PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer.from_str(spec(specials)), **settings(**more))


def ours(form: str = "llama", **changes: Any) -> LM:
    """A random model of ours of a form, with a vocabulary for the tokenizer."""
    foreign = fitted(FORMS[form].foreign | changes)
    return LM(FORMS[form].build(torch.float32, foreign=foreign), Tokenizer(spec(), settings()), f"a random {form}")


def fitted(foreign: dict[str, Any]) -> dict[str, Any]:
    """A configuration whose vocabulary and tokens are those of the tokenizer."""
    known = Tokenizer(spec(), settings())
    return foreign | {"vocab_size": known.vocab_size, "bos_token_id": known.bos, "eos_token_id": known.eos}


def theirs(form: str = "llama", scaling: str = "none", **changes: Any) -> Any:
    """A random model of the reference library of a form, with a vocabulary for the tokenizer."""
    foreign = fitted(FORMS[form].scaled(scaling) | changes)
    kind = FORMS[form].kind
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**copy.deepcopy(foreign))
    made = getattr(transformers, kind.write(FORMS[form].config)["architectures"][0])(config).eval()
    scatter(made)
    made.tie_weights()
    made.generation_config.eos_token_id = foreign["eos_token_id"]
    return made


def rotary(model: Any) -> Any:
    """Its module of rotary tables."""
    return next(module for module in model.modules() if hasattr(module, "inv_freq"))


def turned(model: Any, frequencies: torch.Tensor) -> Any:
    """The model with other frequencies in its rotary module."""
    module = rotary(model)
    module.inv_freq = frequencies.to(module.inv_freq)
    return model


def plain(model: Any, base: float | None = None) -> torch.Tensor:
    """The unscaled frequencies of its configuration, or those of another base."""
    given = model.config.to_dict()
    rope = given["rope_parameters"]
    base = rope["rope_theta"] if base is None else base
    size = given.get("head_dim") or given["hidden_size"] // given["num_attention_heads"]
    return base ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)


def saved(model: Any, tokenizer: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def edited(folder: Path, **changes: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder
