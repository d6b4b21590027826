"""Memory of generation: weights, the key-value cache (an LSTM: its state), one chunk of the prompt in a layer.

A full cache is reserved once for prompt + new tokens of every row: 2 x layers x rows x tokens x K E numbers; what other
caches take they say themselves (`Footprint`).
"""

from handscroll.base.workload import Footprint, Workload
from handscroll.plan.layer import KEYS, QUERIES, WIDE, WIDEST, narrow
from handscroll.plan.memory import Parts, weight_bytes

PREFILL = 1024  # tokens of a prompt per forward (generate/prefill.py)


def fixed_parts(workload: Workload) -> Parts:
    """Weights and cache; they stay through the request."""
    shape = workload.shape
    if shape.family == "lstm":  # its state, whatever the length
        cache = 2 * shape.layers * workload.rows * shape.width * narrow(workload)
    else:
        kept = footprint(workload)
        chunk = min(workload.chunk or PREFILL, workload.length)
        there = kept.held(workload.past) if workload.past else 0
        cache = workload.rows * max(0, kept.peak(workload.past + workload.length, workload.new, chunk) - there)
    return {"weights": weight_bytes(workload), "cache": cache, "data": workload.rows * workload.length * 8}


def footprint(workload: Workload) -> Footprint:
    """Of a row's cache: the workload's own, or every token in its dtype."""
    full = Footprint(each=2 * workload.shape.layers * workload.shape.shared * narrow(workload))
    return workload.cache or full


def phases(workload: Workload) -> dict[str, Parts]:
    """Reading a chunk of the prompt; making one token."""
    shape, e, rows = workload.shape, narrow(workload), workload.rows
    n = rows * min(workload.length, workload.chunk or PREFILL)
    gates = 3 if shape.family == "llama" else 2
    mlp = n * (gates * e * shape.mlp_width + 3 * e * shape.width)
    # q and its float32 rotation; per span of the past an output, joined in float32.
    attention = n * (4 * WIDE * shape.inner + 3 * e * shape.width)
    table = n * WIDE * shape.head_size if shape.family == "llama" else 0
    length = workload.past + workload.length + workload.new
    scores = 0 if shape.family == "lstm" else rows * shape.heads * length * (WIDE + e)
    logits = rows * shape.vocab * 3 * WIDE
    if shape.biased or shape.sloped:  # of a tile, and the same under its mask; of a new token, and its scores with it
        attention += WIDE * (2 * shape.heads + 1) * min(n, QUERIES) * min(length, max(KEYS, WIDEST // shape.heads))
        scores += 2 * WIDE * shape.heads * length
    # Copies that grouped decoding makes of nothing: keys are read where they lie.
    return {"prompt": {"work": max(mlp, attention) + table}, "token": {"work": scores + logits}}
