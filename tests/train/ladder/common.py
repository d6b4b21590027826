"""Rows with documents and padding, and how far apart gradients are: what the tests of every rung share."""

import torch

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
