"""A tiny random model that chats, and one that fills holes."""

import json
from pathlib import Path

import torch

from handscroll.lm import LM
from handscroll.models.llama import Llama, LlamaConfig
from handscroll.models.weights import save_model
from handscroll.text.tokenizer import Tokenizer
from tests.conformance.families import scatter
from tests.text.chat_templates import FAMILIES
from tests.text.chat_tokenizers import built, settings_of

FIM = "<|fim_prefix|> <|fim_suffix|> <|fim_middle|> <|endoftext|>"


def talker(context: int = 1024, specials: str = "", template: bool = True, seed: int = 0) -> LM:
    """A random model with the template of ChatML, or without one."""
    chatml, own = FAMILIES["chatml"]
    names = f"{own} {specials}".strip()
    settings = settings_of(names) | ({"chat_template": chatml} if template else {"eos_token": "<|im_end|>"})
    tokenizer = Tokenizer(built(names), settings)
    end = tokenizer.written["<|im_end|>"]
    sizes = {"vocab": len(tokenizer.words), "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "mlp_width": 48}
    sizes["positions"] = {"base": 1000.0, "scaling": {"name": "none"}, "context": context, "trained": context}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Llama(LlamaConfig(**sizes, head_size=8, eos=(end,)))
        scatter(model)
    return LM(model.float().eval(), tokenizer, "tiny")


def saved(folder: Path, **more) -> Path:
    """The same as a folder."""
    lm = talker(**more)
    save_model(lm.model, folder)
    lm.tokenizer.save(folder)
    return folder


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path
