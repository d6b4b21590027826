"""The memory of generation: weights, tokenizer, key-value cache (for an LSTM its state), a prompt chunk in a layer.

A full cache is reserved once for the prompt and new tokens of every row: 2 x layers x rows x tokens x K E numbers.
Other caches report their own size (`Footprint`).
"""

from handscroll.base.portions import KEYS, MLP_TILE, PREFILL, QUERIES, WIDEST
from handscroll.base.spec import kinds
from handscroll.base.workload import Footprint, Workload
from handscroll.plan.layer import WIDE, narrow
from handscroll.plan.memory import Parts, rotated, weight_bytes

# Bytes of a tokenizer for each token of the vocabulary: 448 for Qwen's 151,936 tokens with as many merges, 492 for
# Gemma's 262,144 with 515,000 merges (2026-11). While it is made it takes as much again, before the weights are read.
TOKEN = 470


def fixed_parts(workload: Workload) -> Parts:
    """Weights, tokenizer and cache, which stay during the whole request."""
    if workload.spec.recurrent:  # its state has the same size for any length
        cache = workload.rows * workload.spec.cache_bytes(1, narrow(workload))
    else:
        kept = footprint(workload)
        chunk = min(workload.chunk or PREFILL[workload.device], workload.length)
        there = kept.held(workload.past) if workload.past and not workload.copied else 0
        cache = workload.rows * max(0, kept.peak(workload.past + workload.length, workload.new, chunk) - there)
    return {
        "weights": weight_bytes(workload),
        "tokenizer": TOKEN * workload.spec.vocab,
        "cache": cache,
        "data": workload.rows * workload.length * 8,
    }


def footprint(workload: Workload) -> Footprint:
    """The footprint of a row's cache: the workload's own, or that of the exact cache in its dtype.

    In the exact cache, windowed layers keep only their window.
    """
    if workload.cache is not None:
        return workload.cache
    spec, e = workload.spec, narrow(workload)
    each = dict.fromkeys(spec.windows, 0)
    for layer, count in kinds(spec.layers):
        each[layer.window] += count * layer.cache_bytes(1, e)
    rolling = tuple((size, window) for window, size in each.items() if window is not None)
    return Footprint(each=each.get(None, 0), rolling=rolling)


def phases(workload: Workload) -> dict[str, Parts]:
    """The memory of the two phases: reading a chunk of the prompt, and making one token.

    Each is computed for the layer that takes most.
    """
    spec, e, rows = workload.spec, narrow(workload), workload.rows
    read = min(workload.length, workload.chunk or PREFILL[workload.device])
    n, tile = rows * read, rows * (min(read, MLP_TILE) if workload.device == "cpu" else read)
    length = workload.past + workload.length + workload.new
    layers = [layer.read for layer, _ in kinds(spec.layers)]
    mlp = max(tile * layer.products * e * layer.mlp_width + n * 3 * e * layer.width for layer in layers)
    # q and its float32 rotation, and one output for each span of the past, joined in float32.
    attention = n * max(4 * WIDE * layer.inner + 3 * e * layer.width for layer in layers)
    table = n * WIDE * rotated(spec)
    heads = 0 if spec.recurrent else max(layer.heads for layer in layers)
    scores = rows * heads * length * (WIDE + e)
    logits = rows * spec.vocab * 3 * WIDE
    if spec.bias:  # the bias of a tile, also with its mask; the bias of a new token, and its scores with it
        attention += WIDE * (2 * heads + 1) * min(n, QUERIES) * min(length, max(KEYS, WIDEST // heads))
        scores += 2 * WIDE * heads * length
    # Grouped decoding makes no copies: it reads keys in place.
    return {"prompt": {"work": max(mlp, attention) + table}, "token": {"work": scores + logits}}
