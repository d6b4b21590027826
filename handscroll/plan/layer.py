"""Bytes that one layer needs for one token: what autograd keeps of it, and what its backward holds besides.

Letters as in `nn/shapes.py` (D width, H heads, K kv heads, E head size, F MLP width). Wide tensors (the residual
stream, norms, log-sum-exps) are float32; under autocast the products and what they save are bfloat16 (`narrow`). A
linear layer under autocast keeps its own bfloat16 copy of its input. Counted on torch 2.13, see docs/plan.md.
"""

from dataclasses import dataclass

from handscroll.base.spec import LayerSpec, kinds, over
from handscroll.base.workload import Workload

WIDE = 4  # bytes of a float32
QUERIES = 512  # tokens of a query tile under a mask tensor (nn/pieces.py)
WIDEST = 8192  # keys under one mask tensor
KEYS = 512  # and at least so many under one tensor for every head
DOCUMENTS = 4  # of a packed row, as it is counted
STEPWISE = 16_000  # bytes of graph of a step that is made alone
# Tensors of a tile of scores that its backward holds with a learned bias, those of them that rows share, and numbers
# that distances take which are looked up one by one (2026-11).
BIASED, SHARED, DISTANCES = 11, 5, 4


def narrow(workload: Workload) -> int:
    """Bytes of a number in the products: 2 under autocast (or in a bfloat16 model), else 4."""
    return 2 if workload.precision == "bfloat16" else WIDE


def stream(workload: Workload) -> int:
    """Bytes of a number of what goes from layer to layer: 2 where frozen weights are bfloat16, else 4."""
    return 2 if workload.frozen == "bfloat16" else WIDE


@dataclass(frozen=True)
class Layer:
    """Bytes per token of one layer. `kept_mlp` is the part of `kept` that lies inside the MLP.

    kept, of the Llama form in float32: 4 (6 D + 3 H E + 2 K E + H + 4 F + 2): both norms keep their input, their
    scaled input and their output; attention keeps q, k, v, its output twice (the second as the projection reads it) and
    the log-sum-exp; the MLP keeps gate, silu(gate), up and their product. With layer norms and a plain MLP it is
    4 (4 D + 2 H E + 2 K E + H + 2 F + 4).
    Not kept: with LoRA what only frozen weights would need; with `mlp_tile` what is inside the MLP; on a GPU, whose
    norms are one kernel, their scaled input.
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
        frozen, wide = bool(workload.lora), stream(workload)
        attention = _kept_attention(workload, layer, frozen)
        attention += _kept_cross(layer, e, frozen) if layer.crossed else 0
        mlp = _kept_mlp(layer, e, frozen)
        norm_input = wide * layer.width  # the MLP's input, kept where it is tiled
        inside = 0 if workload.mlp_tile else mlp
        gates = layer.products - 1
        dropped = 17 * layer.width if workload.dropout else 0
        q, kv = layer.inner, layer.shared
        return cls(
            kept=attention + inside + (norm_input if workload.mlp_tile else 0),
            kept_mlp=inside,
            mlp_backward=gates * e * layer.mlp_width * (0 if workload.mlp_tile else 1)
            + 2 * wide * layer.width
            + dropped,
            attention_backward=e * q + WIDE * q + e * q + 2 * (e + WIDE) * kv + wide * layer.width,
            forward=max(4 * wide * layer.width + (gates + 1) * e * layer.mlp_width, (2 * e + 2 * WIDE) * q + dropped),
        )

    @classmethod
    def widest(cls, workload: Workload) -> "Layer":
        """That of the layer that keeps most."""
        return max((cls.of(workload, layer) for layer, _ in kinds(workload.spec.layers)), key=lambda one: one.kept)


def kept_by_all(workload: Workload) -> int:
    """Bytes that all layers keep of a token."""
    return over(workload.spec.layers, lambda layer: Layer.of(workload, layer).kept)


def _recurrent(workload: Workload, layer: LayerSpec) -> Layer:
    """An LSTM layer, always in float32.

    Four gates, the cell, the output and its place in the row: 7.25 D numbers a token. The slopes of the gates wait for
    one product; packed rows are gathered and put back, 6 D more at that moment. Set by the growth of the peak with the
    tokens in 3 layers of 256 and 512 and in 15 of 128 (torch 2.13, 2026-11). Packed rows that go on from a state with a
    gradient are run step by step by torch, whose graph then holds 16 KB a step.
    """
    width = WIDE * layer.width
    gathered = 6 * width if workload.packed else 0
    steps = STEPWISE * stepwise(workload) // (workload.rows * max(1, workload.chunk))
    return Layer(29 * width // 4 + steps, 0, 0, attention_backward=11 * width // 2 + gathered, forward=6 * width)


def stepwise(workload: Workload) -> int:
    """Steps of a chunk that a recurrent layer makes one by one; 0 where one kernel makes them all."""
    if not workload.spec.recurrent or not workload.packed or not 0 < workload.chunk < workload.length:
        return 0
    return min(workload.chunk, -(-workload.length // DOCUMENTS))


def _kept_attention(workload: Workload, layer: LayerSpec, frozen: bool) -> int:
    """Norms and attention, without the MLP's inside."""
    e, wide = narrow(workload), stream(workload)
    # q, k and v each keep a narrow copy; what is as wide as the norm's output they share.
    inputs = 3 * e if e < wide else wide
    if frozen and wide == e:
        inputs = wide if workload.lora_targets else 0
    heads = 2 * e * (layer.inner + layer.shared) + WIDE * layer.heads
    # Attention's output follows the layout of q: a rotated q is laid out by heads, and its output is copied.
    projected = e * layer.inner if layer.rotated else 0
    residual = 2 * wide * layer.width
    fused = frozen or workload.device == "cuda"
    scaled = 2 * WIDE * (1 + (0 if fused else layer.width))  # a norm's own weight needs the scaled input
    norms = 4 * WIDE if layer.norm == "layer" else scaled
    norms += (layer.norms - 2) * (scaled // 2 + WIDE * layer.width)  # those of a branch keep their input besides
    return residual + norms + inputs * layer.width + heads + projected + e * workload.lora * 4


def _kept_cross(layer: LayerSpec, e: int, frozen: bool) -> int:
    """Attention to a source, with its norm: of a token of the target; `source_bytes` are of one of the source."""
    scaled = WIDE * (1 + (0 if frozen else layer.width))
    queries = 2 * e * layer.inner + WIDE * layer.heads
    return WIDE * layer.width + scaled + e * layer.width + queries + (e * layer.inner if e < WIDE else 0)


def source_bytes(workload: Workload, layer: LayerSpec) -> int:
    """What one decoder layer keeps of a token of the source: keys, values, and narrow copies of its state."""
    e = narrow(workload)
    return 2 * e * layer.inner + (2 * e * layer.width if e < WIDE else 0)


def _kept_mlp(layer: LayerSpec, e: int, frozen: bool) -> int:
    """The MLP's input and what is inside it."""
    wide, width = layer.mlp_width, layer.width
    if layer.products == 2:
        return e * wide * (1 if frozen else 2) + (0 if frozen else e * width)
    if frozen:
        return e * wide * 3
    return e * wide * 4 + (2 * e if e < WIDE else WIDE) * width


def tile_bytes(workload: Workload, keys: int) -> int:
    """Mask tensors of one query tile over at most `WIDEST` keys: a float mask, and boolean steps on the way.

    Of four documents a row a tile sees two at most. A bias has its numbers for every head, and its scores and their
    slopes are whole tensors.
    """
    if workload.spec.bias == "learned":
        heads, chunk = workload.spec.layers[0].heads, workload.chunk or keys
        wide = min(keys, keys // 2 + QUERIES if workload.packed else keys, max(QUERIES, WIDEST // heads))
        wide = min(wide, chunk) if workload.offload != "none" else wide  # keys come in blocks
        tile = WIDE * min(QUERIES, chunk, keys) * wide
        if workload.packed:  # every row has distances of its own
            return tile * workload.rows * (BIASED * heads + DISTANCES)
        return tile * heads * (SHARED + (BIASED - SHARED) * workload.rows)
    if not workload.packed or workload.spec.recurrent:
        return 0
    return workload.rows * QUERIES * min(keys // 2 + QUERIES, keys, WIDEST) * (narrow(workload) + 4)
