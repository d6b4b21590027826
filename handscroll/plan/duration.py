"""Seconds of an update from counted work and measured speeds (`Calibration`).

Per token a matrix of P numbers costs 2 P operations forward and 4 P backward (2 P where it is frozen). Attention of one
query and one key costs 4 E a head forward and 10 E backward. Rungs repeat parts of the forward: checkpoint and
chunk-outer once, stages of several layers nearly twice. The tiled MLP is computed once more.
"""

from dataclasses import dataclass

from handscroll.base.workload import CHUNKED, Workload
from handscroll.plan.calibration import Calibration
from handscroll.plan.layer import QUERIES, WIDE, Layer
from handscroll.plan.memory import stage_layers

MASKED = 5  # calls of a layer that a tile of queries under a mask tensor takes as long as (2 to 10 were measured)


@dataclass(frozen=True)
class Work:
    """Counts of one update: operations of matrix products and of attention, bytes of activations, calls, traffic."""

    products: float
    attention: float
    activations: float
    calls: float
    traffic: float
    narrow_products: float = 0.0  # muon's orthogonalisation runs in bfloat16 whatever the precision


def seconds(workload: Workload, calibration: Calibration) -> float:
    """Seconds of one update, with nothing overlapped."""
    work, narrow = count(workload), workload.precision == "bfloat16"
    product = calibration.product_narrow if narrow else calibration.product
    attention = calibration.attention_narrow if narrow else calibration.attention
    found = work.products * product + work.attention * attention + work.narrow_products * calibration.product_narrow
    return (
        found
        + work.activations * calibration.activation
        + work.calls * calibration.call
        + work.traffic * calibration.traffic
    )


def forwards(workload: Workload) -> float:
    """How often the layers run forward in an update."""
    if workload.kind not in ("train", "extend") or workload.rung == "plain":
        return 1.0
    if workload.rung not in CHUNKED:
        return 2.0
    layers, size = workload.shape.layers, stage_layers(workload)
    before = 1 - workload.chunk / workload.length if workload.length > workload.chunk else 0.0
    stages = -(-layers // size)
    # Outputs of every stage but the last; keys and values of all chunks but the last, whose last layer does nothing
    # else; the recomputed chunk.
    return (1 - size / layers if stages > 1 else 0.0) + before * (size - 1) / size + 1.0


def count(workload: Workload) -> Work:
    """The work of one update."""
    shape, tokens = workload.shape, workload.rows * workload.micro * workload.length
    again, train = forwards(workload), workload.kind in ("train", "extend")
    back = (2.0 if shape.lora_rank else 4.0) if train else 0.0
    matrices = shape.layer_matrices + 3 * shape.adapters
    products = 3 if shape.family == "llama" else 2
    tiled = 2.0 * products * shape.width * shape.mlp_width if workload.mlp_tile else 0.0
    per_token = shape.layers * ((2 * again + back) * matrices + tiled)
    per_token += (6.0 if not shape.lora_rank else 4.0) * shape.table
    pairs = sum(_pairs(workload, window) for window in (shape.windows or (None,) * shape.layers))
    attention = workload.rows * workload.micro * pairs * shape.inner * (4 * again + (10 if train else 0))
    kept = Layer.of(workload.changed(mlp_tile=0)).kept
    chunks = -(-workload.length // workload.chunk) if workload.rung in CHUNKED else 1
    tiles = MASKED * -(-workload.length // QUERIES) if workload.packed else 0
    calls = workload.micro * shape.layers * (chunks + tiles) * (again + (2 if train else 0))
    return Work(
        products=tokens * per_token,
        attention=attention,
        activations=tokens * shape.layers * kept * (again + (2 if train else 0)),
        calls=calls,
        traffic=_traffic(workload),
        narrow_products=_orthogonal(workload),
    )


def _pairs(workload: Workload, window: int | None) -> float:
    """Query-key pairs of one row in one layer. A packed row is taken as one of four documents of equal length."""
    length = workload.length
    if window is not None and window < length:
        return length * window - window * window / 2
    return length * length / (8 if workload.packed else 2)


def _traffic(workload: Workload) -> float:
    """Bytes that clipping, the optimiser and the average move for each trainable number."""
    passes = {"adam": 14, "adamw": 14, "sgd": 6, "lamb": 20, "adafactor": 12, "muon": 12}[workload.optimizer]
    return WIDE * workload.shape.trainable * (passes + 4 + (3 if workload.average else 0))


def _orthogonal(workload: Workload) -> float:
    """Operations of muon's five Newton-Schulz iterations: 4 m m n + 2 m m m each, m the smaller side."""
    shape = workload.shape
    if workload.optimizer != "muon" or shape.lora_rank:
        return 0.0
    attention = [shape.inner, shape.shared, shape.shared, shape.inner]
    sides = [(shape.width, out) for out in attention]
    sides += [(shape.width, shape.mlp_width)] * (3 if shape.family == "llama" else 2)
    small = [(min(pair), max(pair)) for pair in sides]
    return 5.0 * shape.layers * sum(4 * m * m * n + 2 * m**3 for m, n in small)
