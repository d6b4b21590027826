"""Initialisation of a new model: normal, Xavier, He, or mimetic (attention begins by looking at neighbours)."""

import math

import torch
from torch import nn

from handscroll.base.errors import ConfigError
from handscroll.nn.attention import Attention
from handscroll.nn.bias import Relative
from handscroll.nn.recurrence import LSTMLayer

SCHEMES = ("normal", "xavier", "he", "mimetic")
AMPLITUDE, BASE, STRENGTH = 0.05, 100.0, 20.0  # of the sinusoids; STRENGTH: score of a place with itself, in nats
STEEPEST, FLATTEST, FARTHEST = 2.0, 1 / 32, 8.0  # slopes of relative biases, nats a token; their largest reduction


def initialise(model: nn.Module, scheme: str, layers: int, generator: torch.Generator, std: float = 0.02) -> None:
    """Draw every weight matrix of `model` in place; biases become 0, norm weights stay 1.

    normal: N(0, std); xavier: variance 2 / (fan in + fan out) (Glorot & Bengio 2010); he: variance
    2 / fan in (He et al. 2015). Each gate of an LSTM is a matrix of its own, and the forget gate's bias is 1
    (Jozefowicz et al. 2015). Embedding tables are always N(0, std): a lookup has no fan in. Projections
    back into the residual stream (`output`, `down`) are divided by sqrt(2 x layers) (Radford et al. 2019).

    mimetic: as normal, but a learned position table begins as sinusoids (Vaswani et al. 2017; wavelengths from 2 pi to
    200 pi), and the keys of every head begin equal to its queries (after Trockman & Kolter 2023, arXiv:2305.09828). So
    each token attends to its neighbours from the first update on; all of this is then trained. Without it, an encoder
    that learns hidden tokens stays at the loss of word frequencies until it has found the neighbours. A learned
    relative bias (T5) begins as one that falls with distance, with its own slope in each head (after Press et al. 2022,
    arXiv:2108.12409): Adam moves a bias by at most its rate per update, so it would need thousands of updates to get
    there.

    Raises:
        ConfigError: mimetic was asked for a model without learned positions and without a learned relative bias.
    """
    assert scheme in SCHEMES, scheme
    if scheme == "mimetic":
        initialise(model, "normal", layers, generator, std)
        _look_near(model, generator)
        return
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


def _look_near(model: nn.Module, generator: torch.Generator) -> None:
    named = [(name.rsplit(".", 1)[-1], module) for name, module in model.named_modules()]
    tables = [one for name, one in named if name == "position_embedding" and isinstance(one, nn.Embedding)]
    sides = [getattr(model, name) for name in ("bias", "source_bias") if hasattr(model, name)]
    biases = [one for one in (side() for side in sides) if isinstance(one, Relative)]
    if not tables and not biases:
        raise ConfigError("initialise = 'mimetic' needs learned positions (bert, roberta, gpt2, t5): use 'normal'")
    with torch.no_grad():
        for table in tables:
            _sinusoids(table.weight)
        for bias in biases:
            _falling(bias)
    if tables:
        for module in model.modules():
            if isinstance(module, Attention):
                _keys_as_queries(module, generator)


def _sinusoids(table: torch.Tensor) -> None:
    places, width = table.shape
    angles = torch.arange(places)[:, None] / BASE ** (torch.arange(0, width, 2) / width)
    table[:, 0::2] = AMPLITUDE * angles.sin()
    table[:, 1::2] = AMPLITUDE * angles.cos()[:, : width // 2]


def _falling(bias: Relative) -> None:
    """Set each bucket to minus its nearest distance times the head's slope."""
    heads, last = bias.table.shape[1], bias.buckets.last
    slopes = torch.logspace(math.log2(STEEPEST), math.log2(FLATTEST), heads, base=2.0)
    distances = torch.arange(-last, last + 1)
    nearest = torch.full((len(bias.table),), last).scatter_reduce(
        0, bias.buckets.of(distances), distances.abs(), "amin"
    )
    bias.table.copy_(-(nearest[:, None] * slopes).clamp_max(FARTHEST))


def _keys_as_queries(attention: Attention, generator: torch.Generator) -> None:
    size, width = attention.shape.head_size, attention.query.weight.shape[1]
    _normal(attention.query.weight, math.sqrt(STRENGTH / (width * math.sqrt(size))), generator)
    with torch.no_grad():
        attention.key.weight.copy_(attention.query.weight)
