"""Computes the seconds of an update from counted work and measured speeds (`Calibration`).

Per token a matrix of P numbers costs 2 P operations forward and 4 P backward (2 P if it is frozen). Attention of one
query and one key costs 4 E operations a head forward and 10 E backward, plus exponentials. Strategies repeat parts of
the forward: checkpoint and chunk-outer once, stages of several layers nearly twice. A tiled MLP repeats its own forward
once more. Data that is written and read again (activations, logits, masks, copies) is counted as bytes of activations.

The constants come from 128 random runs on a two-core AVX-512 server (bench/planner.runs.jsonl, 2026-11). With speeds
fitted to the same runs the median error is 7 %.
"""

import os
from dataclasses import dataclass, fields, replace

from handscroll.base.portions import QUERIES
from handscroll.base.spec import LayerSpec, over, total
from handscroll.base.workload import CHUNKED, Workload
from handscroll.plan import inference
from handscroll.plan.calibration import Calibration
from handscroll.plan.layer import DOCUMENTS, WIDE, kept_by_all, stepwise
from handscroll.plan.memory import carried, stage_layers, weight_bytes

BESIDE = 256  # keys that a query computes besides those it sees, because kernels work in blocks
BLOCKS = 384  # the same with mask tensors (nn/pieces.py: tiles of 512 queries over blocks of 512 keys)
# EXPONENTIALS: the cost of the exponentials of a query and a key (forward, backward), in operations of a product.
# OPERATIONS: the operations of their products (forward, backward), per number of the head size.
EXPONENTIALS = {"float32": (56, 172), "bfloat16": (105, 330)}
OPERATIONS = {"float32": (4, 10), "bfloat16": (4, 15)}
UNEVEN = {"float32": 1.3, "bfloat16": 1.75}  # largest factor if the threads cannot share rows x kv heads evenly
# Costs in bytes of activations: of a logit, a number of a mask, a number that dropout reads, a weight that is cast, and
# a number that a LoRA adapter reads or adds.
LOGITS = {"float32": 12, "bfloat16": 16}
MASKED, DROPPED, CAST, ADAPTED = 10, 25, 9, 10
# The same for a learned bias, per query, key and head in every pass: the part of each row, the part that rows share,
# and the cost for packed rows, whose distances are looked up one by one.
BIASED, SHARED, LOOKED_UP = 10, 10, 27
NARROW = 1.6  # factor for a byte of bfloat16 activations, which are cast in both directions
UNTRIMMED = 0.6  # factor for a byte in strategy plain, which mostly reuses memory
ORTHOGONAL = 1.7  # factor for an operation of muon's small products
STEP = 0.003  # cost of an LSTM layer's step besides its products, in calls (2 us on an idle machine, 2026-11)
ALONE = 0.13  # the same for a step that torch runs by itself: packed rows in several chunks
# How often a byte of weights is read or written by a float32 product of few rows (LoRA of Qwen 0.5B on 96 tokens).
PACKED = 3
DISK = 8e-9  # seconds to write a byte to disk and read it back


@dataclass(frozen=True)
class Work:
    """The counted work of one update.

    It has the operations of matrix products and of attention, bytes of activations, calls of layers, bytes of optimiser
    traffic, bytes written to disk, and bytes of weights.
    """

    products: float
    attention: float
    activations: float
    calls: float
    traffic: float
    narrow_products: float = 0.0  # in bfloat16 even if the others are not: muon's orthogonalisation, LSTMs' head
    disk: float = 0.0
    read: float = 0.0  # bytes of weights that products read, besides what their operations cost


def seconds(workload: Workload, calibration: Calibration) -> float:
    """The seconds of one update, if nothing overlaps."""
    work, narrow = count(workload), workload.precision == "bfloat16"
    product = calibration.product_narrow if narrow and not workload.spec.recurrent else calibration.product
    product = calibration.product_quantised if workload.rounded else product
    attention = calibration.attention_narrow if narrow else calibration.attention
    found = work.products * product + work.attention * attention + work.narrow_products * calibration.product_narrow
    return (
        found
        + work.activations * calibration.activation
        + work.calls * calibration.call
        + work.traffic * calibration.traffic
        + work.disk * DISK
        + work.read * PACKED * calibration.weights
    )


def reading(workload: Workload, calibration: Calibration, targets: float = 0.0) -> float:
    """The seconds of reading the tokens of a workload once, without gradients; `targets` of them need logits."""
    once = {"kind": "generate", "micro": 1, "packed": False, "strategy": "auto", "stage_layers": 0, "offload": "none"}
    if workload.rounded:
        once["precision"] = "bfloat16"  # that of the cache, and so of attention
    return seconds(workload.changed(**once, optimizer="adamw", dropout=False, targets=targets), calibration)


def writing(workload: Workload, calibration: Calibration) -> float:
    """The seconds of writing the new tokens of a request: each reads all weights and the cache once."""
    kept = inference.footprint(workload)
    held = kept.held(workload.past + workload.length + workload.new // 2)
    each = weight_bytes(workload) + workload.rows * held
    return workload.new * each * calibration.weights


def forwards(workload: Workload) -> float:
    """How often the layers run forward in an update."""
    if workload.kind not in ("train", "extend") or workload.strategy == "plain":
        return 1.0
    if workload.strategy not in CHUNKED:
        return 2.0
    layers, size = len(workload.spec.layers), stage_layers(workload)
    before = 1 - workload.chunk / workload.length if workload.length > workload.chunk else 0.0
    stages = -(-layers // size)
    # Outputs of every stage but the last; keys and values of all chunks but the last, whose last layer does nothing
    # else; the recomputed chunk.
    return (1 - size / layers if stages > 1 else 0.0) + before * (size - 1) / size + 1.0


def count(workload: Workload) -> Work:
    """Count the work of one update."""
    if not workload.spec.encoder:
        return _counted(workload)
    source, target = workload.sides
    parts = (_counted(source.model_copy(update={"targets": 0.0})), _counted(target), _crossed(source, target))
    total = Work(*(sum(getattr(part, field.name) for part in parts) for field in fields(Work)))
    return replace(total, traffic=_traffic(workload))


def _crossed(source: Workload, target: Workload) -> Work:
    """The work of a decoder for its source: attention to it, and the source's keys and values in every layer."""
    layers, train = target.spec.layers, target.kind in ("train", "extend")
    again = forwards(target)
    made = again + (1.0 if target.strategy in CHUNKED else 0.0)  # chunked strategies compute keys and values once more
    pairs = source.length * target.length / (DOCUMENTS if target.packed else 1)
    tokens, written = (side.rows * side.micro * side.length for side in (source, target))
    share = 2.0 * (2 * made + (4.0 if train else 0.0))
    return Work(  # `_counted` counts these keys and values as the target's own, which is corrected here
        products=(tokens - written) * share * over(layers, lambda layer: layer.width * layer.inner),
        attention=target.rows
        * target.micro
        * pairs
        * over(layers, lambda layer: layer.heads * _pair_cost(target, layer, again, train)),
        activations=tokens * 2 * WIDE * (made + (2 if train else 0)) * over(layers, lambda layer: layer.inner),
        calls=0.0,
        traffic=0.0,
    )


def _counted(workload: Workload) -> Work:
    """The work of a decoder, of an encoder, or of one side of an encoder-decoder."""
    spec, tokens = workload.spec, workload.rows * workload.micro * workload.length
    again, train = forwards(workload), workload.kind in ("train", "extend")
    back = (2.0 if workload.lora else 4.0) if train else 0.0
    per_token = over(spec.layers, lambda layer: _products(workload, layer, 2 * again + back))
    head = ((6.0 if workload.learned_head else 4.0) if train else 2.0) * spec.table * workload.targets
    apart = spec.recurrent and workload.precision == "bfloat16"  # an LSTM's layers stay in float32
    per_token += 0.0 if apart else head
    chunks = -(-workload.length // workload.chunk) if workload.strategy in CHUNKED else 1
    passes = again + (2 if train else 0)
    masked = workload.packed and not spec.recurrent
    tiles = -(-workload.length // QUERIES) * (again + 1) if masked else 0
    if spec.recurrent:
        steps = STEP * workload.length / (DOCUMENTS if workload.packed else 1) + ALONE * chunks * stepwise(workload)
    else:
        steps = float(chunks)
    calls = len(spec.layers) * (steps * passes * (1.5 if workload.lora else 1.0) + tiles)
    return Work(
        products=tokens * per_token,
        attention=_attention(workload, again, train),
        activations=_activations(workload, chunks, again, train),
        calls=workload.micro * calls,
        traffic=_traffic(workload),
        narrow_products=_orthogonal(workload) + (tokens * head if apart else 0.0),
        disk=workload.micro * sum(carried(workload).values()) if workload.offload == "disk" else 0.0,
        read=_read(workload, chunks, again) if train else 0.0,
    )


def _read(workload: Workload, chunks: int, again: float) -> float:
    """The bytes of float32 weights that an update's products read on a CPU: for rows of few tokens it is felt."""
    if workload.device != "cpu" or workload.precision == "bfloat16":
        return 0.0
    back = 1.0 if workload.lora else 2.0
    layers = chunks * (again + back) * total(workload.spec.layers, "matrices")
    return 4.0 * workload.micro * (layers + (3.0 if workload.learned_head else 2.0) * workload.spec.table)


def _products(workload: Workload, layer: LayerSpec, each: float) -> float:
    """The operations of a token in a layer's projections, with `each` operations per weight."""
    layer = layer.read
    found = each * (layer.matrices + 3 * workload.adapters(layer))
    found += 2.0 * layer.products * layer.width * layer.mlp_width if workload.mlp_tile else 0.0
    if (
        workload.spec.both_ways and workload.strategy == "layer-outer"
    ):  # keys and values once forward, once on the way back
        found += 2 * 4 * layer.width * layer.shared
    return found


def operations(workload: Workload) -> float:
    """The operations of an update, counted in the same way for any device.

    They are the matrix products, and the attention of the query-key pairs that are seen.
    """
    again = 4 * forwards(workload) + 10
    pairs = over(workload.spec.layers, lambda layer: layer.inner * _seen(workload, layer))
    return count(workload).products + workload.rows * workload.micro * pairs * again


def _attention(workload: Workload, again: float, train: bool) -> float:
    """The operations of attention, with exponentials. In the backward the threads share rows and kv heads."""
    if workload.spec.recurrent:
        return 0.0
    edge = BLOCKS if workload.packed else BESIDE

    def one(layer: LayerSpec) -> float:
        pairs = _seen(workload, layer) + edge * workload.length
        return pairs * layer.heads * _pair_cost(workload, layer, again, train)

    return workload.rows * workload.micro * over(workload.spec.layers, one)


def _pair_cost(workload: Workload, layer: LayerSpec, again: float, train: bool) -> float:
    """The operations of one query, key and head, with exponentials."""
    precision = workload.precision
    (forward, backward), (there, back) = OPERATIONS[precision], EXPONENTIALS[precision]
    parts, threads = workload.rows * layer.kv_heads, workload.threads or os.cpu_count() or 1
    uneven = min(UNEVEN[precision], -(-parts // threads) * threads / parts)
    each = again * (forward * layer.head_size + there)
    return each + (uneven * (backward * layer.head_size + back) if train else 0)


def _activations(workload: Workload, chunks: int, again: float, train: bool) -> float:
    """The bytes of activations that are written and read, with other work that is counted in such bytes."""
    spec, precision = workload.spec, workload.precision
    tokens, layers = workload.rows * workload.micro * workload.length, len(spec.layers)
    passes = again + (2 if train else 0)
    cast = precision == "bfloat16" and train  # only autocast casts
    kept = kept_by_all(workload.changed(mlp_tile=0)) * (NARROW if cast else 1.0)
    kept *= UNTRIMMED if workload.strategy == "plain" else 1.0
    found = tokens * kept * passes + workload.targets * tokens * spec.vocab * LOGITS[precision]
    if spec.bias == "learned":
        edge, each = (BLOCKS, LOOKED_UP) if workload.packed else (0, BIASED + SHARED / workload.rows)
        pairs = over(spec.layers, lambda one: one.heads * (_seen(workload, one) + edge * workload.length))
        found += each * workload.rows * workload.micro * pairs * passes
    if workload.packed and not spec.recurrent:
        found += MASKED * tokens * layers * (workload.length / 8 + BLOCKS) * (again + 1)
    if workload.dropout:
        found += DROPPED * tokens * spec.width * (2 * layers + 1) * (again + 1)
    if cast:
        found += CAST * workload.micro * chunks * total(spec.layers, "matrices") * again
    if workload.lora:
        adapted = over(spec.layers, lambda one: 3 * one.width + 2 * one.inner + 2 * one.shared)
        found += ADAPTED * tokens * adapted * (again + 1)
    return found


def _seen(workload: Workload, layer: LayerSpec) -> float:
    """The query-key pairs of one row in one layer. A packed row counts as four documents of equal length."""
    length, window = workload.length, layer.window
    if window is not None and window < length:
        return (length * window - window * window / 2) * (2 if layer.ahead else 1)
    if workload.spec.both_ways:
        return length * length / (DOCUMENTS if workload.packed else 1)
    return length * length / (8 if workload.packed else 2)


def _traffic(workload: Workload) -> float:
    """The bytes that clipping, the optimiser and the weight average read and write."""
    if workload.kind not in ("train", "extend"):
        return 0.0
    passes = {"adam": 14, "adamw": 14, "sgd": 6, "lamb": 20, "adafactor": 12, "muon": 12}[workload.optimizer]
    return 4 * workload.trainable * (passes + 4 + (3 if workload.average else 0))


def _orthogonal(workload: Workload) -> float:
    """The operations of muon's five Newton-Schulz iterations: 4 m m n + 2 m m m each, with m the smaller side."""
    if workload.optimizer != "muon" or workload.lora:
        return 0.0
    return ORTHOGONAL * 5.0 * over(workload.spec.layers, _iterations)


def _iterations(layer: LayerSpec) -> float:
    """The operations of one iteration on all matrices of a layer."""
    attention = [layer.inner, layer.shared, layer.shared, layer.inner]
    sides = [(layer.width, out) for out in attention] if layer.inner else []
    sides += [(layer.width, layer.mlp_width)] * layer.products * max(1, layer.experts)
    small = [(min(pair), max(pair)) for pair in sides]
    return float(sum(4 * m * m * n + 2 * m**3 for m, n in small))
