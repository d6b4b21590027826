"""Initialisation of a new model: normal, Xavier, He."""

import math

import torch
from torch import nn

from handscroll.nn.recurrence import LSTMLayer

SCHEMES = ("normal", "xavier", "he")


def initialise(model: nn.Module, scheme: str, layers: int, generator: torch.Generator, std: float = 0.02) -> None:
    """Draw every weight matrix of `model` in place; biases become 0, norm weights stay 1.

    normal: N(0, std); xavier: variance 2 / (fan in + fan out) (Glorot & Bengio 2010); he: variance
    2 / fan in (He et al. 2015). Each gate of an LSTM is a matrix of its own, and the forget gate's bias is 1
    (Jozefowicz et al. 2015). Embedding tables are always N(0, std): a lookup has no fan in. Projections
    back into the residual stream (`output`, `down`) are divided by sqrt(2 x layers) (Radford et al. 2019).
    """
    assert scheme in SCHEMES, scheme
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            _normal(module.weight, std, generator)
        elif isinstance(module, nn.Linear):
            fan_out, fan_in = module.weight.shape
            spread = {"normal": std, "xavier": math.sqrt(2 / (fan_in + fan_out)), "he": math.sqrt(2 / fan_in)}[scheme]
            if name.rsplit(".", 1)[-1] in ("output", "down"):
                spread /= math.sqrt(2 * layers)
            _normal(module.weight, spread, generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, LSTMLayer):
            width = module.weight_ih.shape[1]
            spread = {"normal": std, "xavier": math.sqrt(1 / width), "he": math.sqrt(2 / width)}[scheme]
            _normal(module.weight_ih, spread, generator)
            _normal(module.weight_hh, spread, generator)
            with torch.no_grad():
                module.bias_ih.zero_()[width : 2 * width] = 1.0
                module.bias_hh.zero_()


def _normal(weight: torch.Tensor, std: float, generator: torch.Generator) -> None:
    with torch.no_grad():
        weight.normal_(0.0, std, generator=generator)
