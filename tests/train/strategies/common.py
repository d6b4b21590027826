"""Shared by the tests of every strategy: rows with documents and padding, and the distance between gradients."""

import torch

from handscroll.data.batch import Batch
from handscroll.models.bert import Bert, BertConfig
from handscroll.models.bloom import Bloom, BloomConfig
from handscroll.models.gpt2 import GPT2, GPT2Config
from handscroll.models.llama import Llama, LlamaConfig
from handscroll.nn.init import initialise
from handscroll.train.lora import LoRA, add_lora

CPU = torch.device("cpu")
DOCUMENT = 47  # tokens of each document of a packed row


def marked(kind, rows, length):
    """Index, segment and position (rows, length) of packed documents, and where padding is: behind the first row, or,
    of kind "short", behind every row, whole chunks without a token."""
    steps = torch.arange(length).expand(rows, -1)
    first = torch.arange(rows)[:, None] == 0
    padding = steps >= 90 if kind == "short" else (steps >= length - 30) & first
    index, segment = (marks.masked_fill(padding, -1) for marks in (steps, steps // DOCUMENT))
    return (index, segment, steps % DOCUMENT), padding


def gradients(model):
    """The gradients of a model by name, in float64, taken from it."""
    found = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def distance(found, wanted):
    """Relative distance of all gradients together."""
    assert found.keys() == wanted.keys()
    apart = sum((found[name] - wanted[name]).square().sum() for name in wanted)
    return float((apart / sum(value.square().sum() for value in wanted.values())).sqrt())


def adapted(model, *targets):
    """The model with updates of rank 3 on some projections, which are not zero: nothing else is trained."""
    add_lora(model, LoRA(rank=3, targets=targets))
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if name.endswith(".b"):
            parameter.data.normal_(0, 0.1, generator=generator)
    return model


LLAMA = {"vocab": 67, "width": 32, "layers": 5, "heads": 4, "kv_heads": 2, "head_size": 8, "mlp_width": 48}


def llama(**more):
    positions = {"base": 1e4, "scaling": {"name": "none"}, "context": 256, "trained": 256}
    return Llama(LlamaConfig(**{**LLAMA, "positions": positions, **more}))


def scaled(name, **fields):
    scaling = {"name": name, "factor": 4.0, "original": 64, **fields}
    return Llama(LlamaConfig(**LLAMA, positions={"base": 1e4, "scaling": scaling, "context": 256, "trained": 64}))


MODELS = {
    "llama": llama,
    "windows": lambda: llama(windows=(20, None, 100, 7, None)),
    "tied": lambda: llama(tied=True, query_key_norm=True),
    "dynamic": lambda: scaled("dynamic-ntk"),
    "self-extend": lambda: scaled("self-extend", window=20, group=6),
    "dual-chunk": lambda: scaled("dual-chunk", chunk=48),
    "bloom": lambda: Bloom(BloomConfig(vocab=67, width=32, layers=4, heads=4, context=256)),
    "lora": lambda: adapted(llama(), "query", "value", "up"),
    "gpt2": lambda: GPT2(GPT2Config(vocab=67, width=32, layers=4, heads=4, mlp_width=48, context=256)),
}


def batch(kind, rows=2, length=200):
    generator = torch.Generator().manual_seed(1)
    tokens, targets = (torch.randint(0, 67, (rows, length), generator=generator) for _ in range(2))
    if kind == "plain":
        return Batch(tokens, targets)
    targets[:, ::7] = -100
    marks, padding = marked(kind, rows, length)
    return Batch(tokens, targets.masked_fill(padding, -100), *marks)


def bert(**more):
    sizes = {"vocab": 67, "width": 32, "layers": 3, "heads": 4, "mlp_width": 48, "context": 256}
    model = Bert(BertConfig(**{**sizes, "pooler": True, "following": True, **more}))
    initialise(model, "normal", 3, torch.Generator().manual_seed(0), std=0.1)
    return model
