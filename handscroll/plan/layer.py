"""The bytes that one layer needs for one token: the tensors that autograd keeps, and the temporaries of the backward.

The letters are those of `nn/shapes.py` (D width, H heads, K kv heads, E head size, F MLP width). Wide tensors (the
residual stream, norms, log-sum-exps) are float32. Under autocast the products and their saved tensors are bfloat16
(`narrow`), and every linear layer keeps its own bfloat16 copy of its input. The bytes were counted on torch 2.13; see
docs/plan.md.
"""

from dataclasses import dataclass

from handscroll.base.portions import QUERIES, WIDEST
from handscroll.base.spec import LayerSpec, kinds, over
from handscroll.base.workload import Workload

WIDE = 4  # bytes of a float32
DOCUMENTS = 4  # assumed documents of a packed row
STEPWISE = 16_000  # bytes of the graph of a recurrent step that torch runs by itself
# With a learned bias: tensors of the size of a score tile that its backward holds, how many of them the rows share, and
# the numbers for distances that are looked up one by one (2026-11).
BIASED, SHARED, DISTANCES = 11, 5, 4


def narrow(workload: Workload) -> int:
    """The bytes of a number in the products: 2 under autocast or in a bfloat16 model, otherwise 4."""
    return 2 if workload.precision == "bfloat16" else WIDE


def stream(workload: Workload) -> int:
    """The bytes of a number in the residual stream: 2 if frozen weights are bfloat16, otherwise 4."""
    return 2 if workload.frozen == "bfloat16" else WIDE


@dataclass(frozen=True)
class Layer:
    """The bytes per token of one layer. `kept_mlp` is the part of `kept` that belongs to the inside of the MLP.

    For the Llama form in float32, kept is 4 (6 D + 3 H E + 2 K E + H + 4 F + 2). Both norms keep their input, their
    scaled input and their output. Attention keeps q, k, v, the log-sum-exp, and its output twice (the second in the
    layout that the projection reads). The MLP keeps gate, silu(gate), up and their product. With layer norms and a
    plain MLP, kept is 4 (4 D + 2 H E + 2 K E + H + 2 F + 4).
    LoRA does not keep the inputs that only frozen weights would need. With `mlp_tile` the inside of the MLP is not
    kept. On a GPU a norm is one kernel and does not keep its scaled input.
    """

    kept: int
    kept_mlp: int
    mlp_backward: int
    attention_backward: int
    forward: int

    @classmethod
    def of(cls, workload: Workload, layer: LayerSpec) -> "Layer":
        e = narrow(workload)
        if layer.recurrent:
            return _recurrent(workload, layer)
        routed, layer = _routed(layer), layer.read
        frozen, wide = bool(workload.lora), stream(workload)
        attention = _kept_attention(workload, layer, frozen)
        attention += _kept_cross(layer, e, workload.learned_norms) if layer.crossed else 0
        mlp = _kept_mlp(layer, e, frozen) + routed
        norm_input = wide * layer.width  # the MLP's input, which is kept if the MLP is tiled
        inside = 0 if workload.mlp_tile else mlp
        gates = layer.products - 1
        dropped = 17 * layer.width if workload.dropout else 0
        q, kv = layer.inner, layer.shared
        return cls(
            kept=attention + inside + (norm_input if workload.mlp_tile else 0),
            kept_mlp=inside,
            mlp_backward=(gates * e * layer.mlp_width + routed) * (0 if workload.mlp_tile else 1)
            + 2 * wide * layer.width
            + dropped,
            attention_backward=e * q + WIDE * q + e * q + 2 * (e + WIDE) * kv + wide * layer.width,
            forward=max(
                4 * wide * layer.width + (gates + 1) * e * layer.mlp_width + routed, (2 * e + 2 * WIDE) * q + dropped
            ),
        )

    @classmethod
    def widest(cls, workload: Workload) -> "Layer":
        """The bytes of the layer that keeps most."""
        return max((cls.of(workload, layer) for layer, _ in kinds(workload.spec.layers)), key=lambda one: one.kept)


def kept_by_all(workload: Workload) -> int:
    """The bytes that all layers together keep for a token."""
    return over(workload.spec.layers, lambda layer: Layer.of(workload, layer).kept)


def _recurrent(workload: Workload, layer: LayerSpec) -> Layer:
    """The bytes of an LSTM layer, which is always in float32.

    It keeps four gates, the cell, the output and its place in the row: 7.25 D numbers a token. The gradients of the
    gates are kept until one product uses them. Packed rows are gathered and scattered, which takes 6 D numbers more at
    that moment. These numbers come from the growth of the peak with the tokens, in 3 layers of 256 and 512 and in 15 of
    128 (torch 2.13, 2026-11). Packed rows that continue from a state with a gradient are run step by step by torch,
    and the graph then holds 16 KB a step.
    """
    width = WIDE * layer.width
    gathered = 6 * width if workload.packed else 0
    steps = STEPWISE * stepwise(workload) // (workload.rows * max(1, workload.chunk))
    return Layer(29 * width // 4 + steps, 0, 0, attention_backward=11 * width // 2 + gathered, forward=6 * width)


def stepwise(workload: Workload) -> int:
    """How many steps of a chunk a recurrent layer runs one by one. 0: one kernel runs all of them."""
    if not workload.spec.recurrent or not workload.packed or not 0 < workload.chunk < workload.length:
        return 0
    return min(workload.chunk, -(-workload.length // DOCUMENTS))


def _kept_attention(workload: Workload, layer: LayerSpec, frozen: bool) -> int:
    """The bytes that norms and attention keep, without the inside of the MLP."""
    e, wide = narrow(workload), stream(workload)
    # q, k and v each keep a narrow copy of their input. If it is as wide as the norm's output, they share that.
    inputs = 3 * e if e < wide else wide
    if frozen and wide == e:
        inputs = wide if workload.lora_targets else 0
    heads = 2 * e * (layer.inner + layer.shared) + WIDE * layer.heads
    # The attention output has the layout of q. A rotated q is laid out by heads, so its output is copied.
    projected = e * layer.inner if workload.spec.rotates else 0
    residual = 2 * wide * layer.width
    fused = not workload.learned_norms or workload.device == "cuda"
    scaled = 2 * WIDE * (1 + (0 if fused else layer.width))  # a norm's own weight needs the scaled input
    norms = 4 * WIDE if layer.norm == "layer" else scaled
    norms += (layer.norms - 2) * (scaled // 2 + WIDE * layer.width)  # norms of a branch also keep their input
    if layer.head_norms or layer.joint_norms:  # the projections, and their scaled form where a norm is trained
        norms += WIDE * ((1 if fused else 2) * (layer.inner + layer.shared) + layer.heads + layer.kv_heads)
    return residual + norms + inputs * layer.width + heads + projected + e * workload.lora * 4


def _routed(layer: LayerSpec) -> int:
    """The bytes that a mixture keeps beside its experts: each chosen one's input and output, plain and weighed, with
    their places, and the router's odds (counted on 2 and 4 of 8 experts, torch 2.13, 2026-11)."""
    return layer.chosen * (3 * WIDE * layer.width + 32) + 3 * WIDE * layer.experts


def _kept_cross(layer: LayerSpec, e: int, learned: bool) -> int:
    """The bytes that attention to a source keeps for a token of the target, with its norm.

    `source_bytes` gives those for a token of the source.
    """
    scaled = WIDE * (1 + (layer.width if learned else 0))
    queries = 2 * e * layer.inner + WIDE * layer.heads
    return WIDE * layer.width + scaled + e * layer.width + queries + (e * layer.inner if e < WIDE else 0)


def source_bytes(workload: Workload, layer: LayerSpec) -> int:
    """The bytes that a decoder layer keeps for a token of the source: keys, values, and narrow copies of its state."""
    e = narrow(workload)
    return 2 * e * layer.inner + (2 * e * layer.width if e < WIDE else 0)


def _kept_mlp(layer: LayerSpec, e: int, frozen: bool) -> int:
    """The bytes that the MLP keeps: its input and its inside."""
    wide, width = layer.mlp_width, layer.width
    if layer.products == 2:
        return e * wide * (1 if frozen else 2) + (0 if frozen else e * width)
    if frozen:
        return e * wide * 3
    return e * wide * 4 + (2 * e if e < WIDE else WIDE) * width


def tile_bytes(workload: Workload, keys: int) -> int:
    """The bytes of the mask tensors of one query tile over at most `WIDEST` keys: a float mask, boolean temporaries.

    With four documents a row, a tile sees at most two. A learned bias has numbers for every head, and its scores and
    their gradients are whole tensors.
    """
    if workload.spec.bias == "learned":
        heads, chunk = workload.spec.layers[0].heads, workload.chunk or keys
        wide = min(keys, keys // 2 + QUERIES if workload.packed else keys, max(QUERIES, WIDEST // heads))
        wide = min(wide, chunk) if workload.offload != "none" else wide  # keys come in blocks
        tile = WIDE * min(QUERIES, chunk, keys) * wide
        if workload.packed:  # every row has its own distances
            return tile * workload.rows * (BIASED * heads + DISTANCES)
        return tile * heads * (SHARED + (BIASED - SHARED) * workload.rows)
    if not workload.packed or workload.spec.recurrent:
        return 0
    return workload.rows * QUERIES * min(keys // 2 + QUERIES, keys, WIDEST) * (narrow(workload) + 4)
