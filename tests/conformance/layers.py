"""The layers of a model, described from its modules: what the spec must say of them."""

from typing import Any

from torch import Tensor, nn

from handscroll.base.spec import LayerSpec
from handscroll.models.lstm import Layer
from handscroll.models.model import Decoder
from handscroll.nn.attention import Attention
from handscroll.nn.block import Block
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Around
from handscroll.nn.mlp import ACTIVATIONS, Experts
from handscroll.nn.norm import LayerNorm, RMSNorm


def described(model: Decoder, length: int) -> list[tuple[LayerSpec, ...]]:
    """The layers of each stack of a model, in a request of `length` tokens."""
    turns = model.rotations(Marks.run(0, 4), length, next(model.parameters()))
    rotated = [2 * turn.sine.shape[-1] if turn.sine.any() else 0 for turn in turns]
    return [tuple(_layer(layer, rotated) for layer in stack.layers) for stack in model.stacks]


def _layer(layer: nn.Module, rotated: list[int]) -> LayerSpec:
    if isinstance(layer, Layer):
        gates, width = layer.lstm.weight_hh.shape
        return LayerSpec(kind="recurrent", width=width, mlp_width=gates, gated=False, norms=0)
    assert isinstance(layer, Block)
    positions = layer.attention.shape.positions
    norms = [module for module in layer.children() if isinstance(module, RMSNorm | LayerNorm)]
    crossed, kind = layer.cross is not None, LayerNorm if isinstance(norms[0], LayerNorm) else RMSNorm
    assert all(isinstance(norm, kind) for norm in norms)
    return LayerSpec(
        width=layer.attention.query.in_features,
        positions=positions,
        rotated=rotated[positions] if rotated else 0,
        norms=len(norms) - crossed,
        norm="layer" if kind is LayerNorm else "rms",
        norm_bias=kind is RMSNorm or _has_bias(*norms),
        crossed=crossed,
        **_attention(layer.attention),
        **_mlp(layer.mlp),
    )


def _attention(attention: Attention) -> dict[str, Any]:
    size, window = attention.shape.head_size, attention.window
    queries, keys = attention.query.out_features, attention.key.out_features
    normed = {module.weight.numel() for name, module in attention.named_children() if name.endswith("norm")}
    return {
        "heads": queries // size,
        "kv_heads": keys // size,
        "head_size": size,
        "window": None if window is None else window.size,
        "ahead": isinstance(window, Around),
        "scale": attention.shape.scale,
        "cap": attention.shape.cap,
        "head_norms": normed == {size},
        "joint_norms": normed == {queries, keys},
        "attention_bias": _has_bias(attention.query, attention.key, attention.value),
        "output_bias": _has_bias(attention.output),
    }


def _mlp(mlp: Any) -> dict[str, Any]:
    several = {"experts": len(mlp.experts), "chosen": mlp.chosen} if isinstance(mlp, Experts) else {}
    one = mlp.experts[0] if several else mlp
    gated, width = hasattr(one, "gate"), one.up.out_features
    form = {"gated": gated, "mlp_width": width, "mlp_bias": _has_bias(one.up, one.down)}
    return several | form | {"activation": {function: name for name, function in ACTIVATIONS.items()}[one.activation]}


def _has_bias(*modules: Any) -> bool:
    """Whether the modules have a bias: all of them or none."""
    (one,) = {isinstance(module.bias, Tensor) for module in modules}
    return one
