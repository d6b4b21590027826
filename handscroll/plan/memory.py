"""Computes the peak memory of a training step: what each strategy holds in each phase, from shapes alone.

A phase is a moment at which much memory is held. The peak is that of the largest phase. n = rows x tokens that are
processed at once: the T tokens of a row in the strategies plain and checkpoint, a chunk in the others.

- plain: L layers x n x `Layer.kept`.
- checkpoint: L x n x 4 D, and one layer's `kept` while it is recomputed.
- staged, with s layers a stage (chunk-outer: all, layer-outer: 1): (stages - 1) x T x 4 D for stage inputs,
  s x T x K E x 2 (narrow + 4) for keys, values and float32 gradients (all chunks but the last), and the `kept` of s
  layers for one chunk. With offload these are stored elsewhere, and only one block of each is in memory. Encoders
  (layer-outer only) hold the inputs of one more stage, for gradients, and keys, values and gradients of all chunks.
- encoder-decoders: the phases of the decoder while the source's part is kept, then those of the encoder (`_sourced`).
- loss, in every strategy: the head's float32 gradient (V D) twice, hidden gradients, one float32 chunk of logits.
- update: the optimiser's temporaries for its largest tensor.
"""

import math
from collections.abc import Sequence

from handscroll.base.portions import LOGITS, RUN
from handscroll.base.spec import LayerSpec, ModelSpec, over
from handscroll.base.workload import Workload
from handscroll.plan.layer import WIDE, Layer, kept_by_all, narrow, source_bytes, stream, tile_bytes

Parts = dict[str, int]


def weight_bytes(workload: Workload) -> int:
    """The bytes of the weights.

    They are float32 in training, also under autocast. Frozen weights have their own dtype. For generate and serve the
    weights are in the model's dtype, or in the format in which they are stored, as under a LoRA over quantised ones.
    """
    if workload.stored and workload.lora:
        return workload.stored + WIDE * workload.trainable
    if workload.stored and workload.kind in ("generate", "serve"):
        return workload.stored
    size = WIDE if workload.kind in ("train", "extend") else narrow(workload)
    if workload.frozen == "bfloat16" and workload.lora:
        return 2 * (workload.parameters - workload.trainable) + WIDE * workload.trainable
    return size * workload.parameters


def state_bytes(workload: Workload) -> int:
    """The bytes that the optimiser keeps: two moments for the Adam family, one for sgd and for muon's matrices."""
    trainable, spec = workload.trainable, workload.spec
    if workload.optimizer == "sgd":
        return WIDE * trainable
    if workload.optimizer == "adafactor":
        rows = spec.vocab + spec.width + sum(one.rows for one in spec.positions)
        if workload.lora:
            tables = (rows if workload.learned_table else 0) + (spec.normed if workload.tables else 0)
            return WIDE * (workload.adapted // 2 + tables)
        return WIDE * (2 * rows + over((*spec.layers, *spec.encoder), _sides))
    if workload.optimizer == "muon":
        return WIDE * (2 * trainable - (workload.adapted if workload.lora else spec.matrices))
    return 2 * WIDE * trainable


def _sides(layer: LayerSpec) -> int:
    """The numbers that adafactor keeps: one for each row and column of a layer's matrices, and its vectors."""
    mlp = 3 * max(1, layer.experts) * (layer.mlp_width + layer.width)
    router = layer.width + layer.experts if layer.experts else 0
    products = 2 * (layer.inner + layer.shared) + 4 * layer.width + mlp + router
    return (10 * layer.width if layer.recurrent else products) + layer.vectors


def update_bytes(workload: Workload) -> int:
    """The optimiser's temporaries for its largest tensor. On the CPU torch updates one tensor after another."""
    tensors = {"adam": 3, "adamw": 2, "sgd": 1, "lamb": 3, "adafactor": 1, "muon": 2}[workload.optimizer]
    largest = tensors * WIDE * workload.largest
    if workload.optimizer != "muon" or workload.lora:
        return largest
    return max(largest, *(_orthogonal(layer) for layer in workload.spec.layers))


def _orthogonal(layer: LayerSpec) -> int:
    """The temporaries of muon for a layer's largest matrix."""
    small = min(layer.width, layer.mlp_width)
    matrix = layer.width * max(layer.mlp_width, layer.inner)
    return (WIDE + 3 * 2) * matrix + 3 * 2 * small * small


def fixed_parts(workload: Workload) -> Parts:
    """The memory that every phase holds, from the second update on."""
    parts = {"weights": weight_bytes(workload), "optimizer": state_bytes(workload) if workload.steps > 1 else 0}
    parts["average"] = WIDE * workload.trainable if workload.average else 0
    length = workload.length
    if workload.spec.encoder:
        length = sum(side.length for side in workload.sides)
    batch = workload.rows * length * 8 * (5 if workload.packed else 2)
    on_gpu = workload.device == "cuda"  # one micro-batch at a time; the text and other batches stay in host memory
    parts["data"] = batch if on_gpu else workload.data_bytes + workload.micro * batch
    return parts


def host_bytes(workload: Workload) -> int:
    """The bytes of host memory that training on a GPU takes: first the weights, unless they were made already (there,
    in float32), and then the text, the batches of an update, and what is offloaded there."""
    offloaded = _page_locked(workload) if workload.offload == "host" else 0
    text = fixed_parts(workload.changed(device="cpu"))["data"]
    return max(0 if workload.made else WIDE * workload.spec.parameters, text + offloaded)


def _page_locked(workload: Workload) -> int:
    """The bytes of what is offloaded to the host. torch rounds each page-locked block up to a power of two."""
    blocks = [_blocks(side) for side in (workload.sides if workload.spec.encoder else (workload,))]
    rounded = {name: max((1 << (one[name] - 1).bit_length()) / one[name] for one in blocks) for name in blocks[0]}
    return sum(math.ceil(size * rounded[name]) for name, size in carried(workload).items())


def _blocks(workload: Workload) -> Parts:
    """The bytes of one chunk of what a chunked strategy offloads: the input of a stage, and a layer's keys."""
    tokens = workload.rows * min(workload.chunk, workload.length)
    shared = tokens * (workload.spec.width if workload.spec.recurrent else _shared(workload.spec))
    return {
        "inputs": tokens * stream(workload) * workload.spec.width,
        "keys": shared * narrow(workload),
        "key gradients": shared * WIDE,
    }


def phases(workload: Workload) -> dict[str, Parts]:
    """The memory of every phase besides `fixed_parts`, by phase and part."""
    found = _sourced(workload) if workload.spec.encoder else _strategy(workload)
    grads = WIDE * workload.trainable
    found["update"] = {"gradients": grads, "update": update_bytes(workload)}
    if workload.micro > 1:  # gradients of earlier micro-batches are held from the start
        for name in found.keys() - {"update"}:
            found[name] = found[name] | {"gradients": grads}
    return found


def _strategy(workload: Workload) -> dict[str, Parts]:
    if workload.strategy == "plain":
        return _plain(workload)
    if workload.strategy == "checkpoint":
        return _checkpoint(workload)
    return _staged(workload)


def _sourced(workload: Workload) -> dict[str, Parts]:
    """The phases of an encoder-decoder: the decoder's phases while the source is kept, then the encoder's backward.

    For the source three things are kept: the tensors for the encoder's backward, its final states with their norm, and
    the keys and values that decoder layers read. Strategy plain keeps the keys and values of all layers, the others
    those of one layer with their gradients.
    """
    source, target = workload.sides
    n, wide = source.rows * source.length, WIDE * source.spec.width
    inner = max(layer.inner for layer in target.spec.layers)
    kept = over(target.spec.layers, lambda layer: source_bytes(target, layer))
    read, write = _strategy(source), _strategy(target)
    states = 3 * n * wide  # the norm's input, its scaled input and its output
    one = max(source_bytes(target, layer) for layer in target.spec.layers)
    keys = n * (one + 2 * (narrow(workload) + WIDE) * inner)
    if workload.strategy == "plain":
        waits = n * kept_by_all(source) + _cast_weights(source) + states
        keys = n * kept
    elif workload.strategy == "checkpoint":
        waits = len(source.spec.layers) * n * wide + states
        keys += 2 * n * wide  # the gradients of the states from this layer and from those above
    else:
        here = workload.offload == "none"
        waits = carried(source)["inputs"] + n * wide if here else 0
        block = source.rows * min(workload.chunk, source.length)
        keys = (n if here else block) * 2 * (2 * narrow(workload) + WIDE) * inner
    found: dict[str, Parts] = {}
    for name, parts in write.items():
        if name != "embedding":
            found[name] = parts | {"source": waits + keys}
    above = WIDE * target.trainable
    for name in read.keys() & {"mlp", "attention", "top", "last"}:
        parts = read[name]
        found[f"source {name}"] = parts | {"gradients": above + parts.get("gradients", 0) - _head_gradient(source)}
    return found


def loss_bytes(workload: Workload, tokens: int) -> int:
    """The peak bytes of the chunked loss of `tokens` hidden states, with the gradients of hidden states and head."""
    spec, e = workload.spec, narrow(workload)
    whole, tokens = tokens, math.ceil(tokens * workload.targets)
    rows = max(16, LOGITS[workload.device] // (WIDE * spec.vocab))
    rows = -(-tokens // max(1, round(tokens / rows)))  # chunks of equal size
    head = _head_gradient(workload)
    hidden = stream(workload) * tokens * spec.width * (2 if workload.packed else 1)
    if spec.transformed:  # the selected states, the tensors their transform keeps, and the gradient of all states
        hidden = WIDE * spec.width * (6 * tokens + whole)
    cast = e * (spec.table + tokens * spec.width) if e < stream(workload) else 0
    widened = WIDE * spec.table if workload.stored else 0  # `Model.head` of quantised weights
    held = hidden + head + cast + widened
    logits = WIDE * rows * spec.vocab
    # In float32 the gradient replaces the logits, and its product is added in place to the head's gradient.
    slope = product = 0
    if e < WIDE:
        slope, product = e * rows * spec.vocab, head + e * spec.table if head else 0
    return held + logits + slope + product


def norm_bytes(workload: Workload, tokens: int) -> int:
    """The bytes of the final norm: its input, scaled input and output. Encoders and LSTMs have no final norm."""
    norm = workload.spec.norm
    if not norm:
        return 0
    fused = norm == "layer" or not workload.learned_norms or workload.device == "cuda"
    return (2 if fused else 3) * stream(workload) * tokens * workload.spec.width


def grads_of_layers(workload: Workload, layers: Sequence[LayerSpec]) -> int:
    """The bytes of the gradients of some layers' parameters."""
    if not workload.lora:
        return WIDE * over(layers, lambda layer: layer.numbers)
    return WIDE * over(layers, lambda layer: workload.adapters(layer) + (layer.normed if workload.tables else 0))


def _head_gradient(workload: Workload) -> int:
    return WIDE * workload.spec.table if workload.learned_head else 0


def _table_gradient(workload: Workload) -> int:
    """The bytes of the gradient of the table of tokens while it is made."""
    return WIDE * workload.spec.table if workload.learned_table else 0


def _cast_weights(workload: Workload, layers: Sequence[LayerSpec] | None = None) -> int:
    """The bytes of bfloat16 copies of some layers' projections (None: all). They exist as long as their graph."""
    cast = narrow(workload) < stream(workload)
    layers = workload.spec.layers if layers is None else layers
    return 2 * over(layers, lambda layer: layer.matrices) if cast else 0


def rotated(spec: ModelSpec) -> int:
    """The numbers of the rotary tables for a token. There is one table for each kind of rotary positions."""
    sizes = {layer.positions: layer.rotated for layer in spec.layers}
    return sum(sizes.values())


def _common(workload: Workload, tokens: int) -> int:
    """The bytes of rotary tables and marks. The float64 angles of the tables are already freed."""
    return tokens * (WIDE * rotated(workload.spec) + 8)


def _plain(workload: Workload) -> dict[str, Parts]:
    spec, n = workload.spec, workload.rows * workload.length
    layer, every = Layer.widest(workload), kept_by_all(workload)
    kept = n * every + _cast_weights(workload)
    shared = _common(workload, workload.length) + norm_bytes(workload, n)
    tiles = tile_bytes(workload, workload.length)
    head = _head_gradient(workload)
    slopes = 2 * stream(workload) * n * spec.width
    top = n * (every - layer.kept_mlp) + _cast_weights(workload)
    grads = WIDE * workload.trainable
    above = grads - grads_of_layers(workload, spec.layers[:1])
    return {
        "loss": {"kept": kept + shared, "loss": loss_bytes(workload, n)},
        "head": {"kept": kept + shared, "loss": slopes + 2 * head},
        "mlp": {"kept": kept, "gradients": head, "work": n * layer.mlp_backward},
        "attention": {"kept": top, "gradients": head, "work": n * layer.attention_backward + tiles},
        "last": {"kept": n * layer.kept, "gradients": above, "work": n * layer.mlp_backward},
        "embedding": {"gradients": grads, "work": _table_gradient(workload) + slopes},
    }


def _checkpoint(workload: Workload) -> dict[str, Parts]:
    spec, n = workload.spec, workload.rows * workload.length
    layer = Layer.widest(workload)
    inputs = len(spec.layers) * n * stream(workload) * spec.width
    cast, one = _cast_weights(workload), _cast_weights(workload, spec.layers[:1])
    shared = _common(workload, workload.length)
    tiles = tile_bytes(workload, workload.length)
    head, grads = _head_gradient(workload), WIDE * workload.trainable
    kept = n * layer.kept + one
    attention = kept - n * layer.kept_mlp + n * layer.attention_backward + tiles
    work = max(kept + n * layer.mlp_backward, attention)
    above = grads - grads_of_layers(workload, spec.layers[:1])
    return {
        "loss": {
            "kept": inputs + shared,
            "work": cast,
            "loss": loss_bytes(workload, n) + norm_bytes(workload, n),
        },
        "forward": {"kept": inputs + shared, "work": cast + n * layer.forward + tiles},
        "top": {"kept": inputs + shared, "gradients": head, "work": work},
        "last": {"kept": 2 * n * stream(workload) * spec.width + shared, "gradients": above, "work": work},
        "embedding": {"gradients": grads, "work": _table_gradient(workload) + 2 * n * stream(workload) * spec.width},
    }


def _staged(workload: Workload) -> dict[str, Parts]:
    spec, length, rows = workload.spec, workload.length, workload.rows
    chunk = min(workload.chunk, length)
    size, count = stage_layers(workload), len(spec.layers)
    stages = -(-count // size)
    n = rows * chunk
    layer = Layer.widest(workload)
    here = carried(workload)
    if workload.offload != "none":
        block = n * _shared(spec) * (2 * narrow(workload) + 2 * 2 * WIDE)
        here = {
            "inputs": stream(workload) * n * spec.width if stages > 1 or spec.both_ways else 0,
            "keys": block,
            "key gradients": block,
        }
    grads = WIDE * workload.trainable
    slopes = 2 * n * stream(workload) * spec.width
    graph = size * n * layer.kept + _cast_weights(workload, spec.layers[:size])
    shared = _common(workload, chunk) + norm_bytes(workload, n)
    past = _past_bytes(workload, chunk)
    attention = n * layer.attention_backward + past + tile_bytes(workload, length)
    work = max(n * layer.mlp_backward, attention - n * layer.kept_mlp)
    several = length > chunk or spec.both_ways
    above = grads - grads_of_layers(workload, spec.layers[:size])
    lowest = here["inputs"] // max(1, stages if spec.both_ways else stages - 1)
    below = grads * (count - size) // count if stages > 1 else 0  # layers that have not run yet
    first = {"inputs": here["inputs"], "keys": here["keys"]}
    held = first | {"key gradients": here["key gradients"] if several else 0}
    return {
        "first": first | {"kept": graph + shared, "loss": loss_bytes(workload, n)},
        "loss": held
        | {"gradients": grads - below if several else 0, "kept": graph + shared, "loss": loss_bytes(workload, n)},
        "top": held | {"gradients": grads - below, "kept": graph, "work": work},
        "last": held | {"inputs": lowest, "gradients": grads if several else above, "kept": graph, "work": work},
        "embedding": held
        | {"inputs": lowest, "gradients": grads, "kept": 0, "work": _table_gradient(workload) + slopes},
    }


def stage_layers(workload: Workload) -> int:
    """The number of layers in a stage of a chunked strategy."""
    return {"chunk-outer": len(workload.spec.layers), "layer-outer": 1}.get(workload.strategy, workload.stage_layers)


def carried(workload: Workload) -> Parts:
    """The bytes that a chunked strategy keeps or offloads: stage inputs, keys and values, and their gradients."""
    if workload.spec.encoder:  # the final states and their gradient too
        source, target = workload.sides
        read, write = carried(source), carried(target)
        numbers = source.rows * source.length * source.spec.width
        more = {"inputs": WIDE * numbers, "keys": read["keys"], "key gradients": read["key gradients"]}
        return {name: read[name] + write[name] + more[name] for name in read}
    spec, rows, length = workload.spec, workload.rows, workload.length
    size = stage_layers(workload)
    stages = -(-len(spec.layers) // size)
    before = length if spec.both_ways else max(0, (-(-length // workload.chunk) - 1) * workload.chunk)
    keys = 2 * size * rows * before * _shared(spec)
    if spec.recurrent:  # two vectors before each chunk
        keys = 2 * size * rows * (before // workload.chunk) * spec.width
    return {
        "inputs": (stages if spec.both_ways else stages - 1) * rows * length * stream(workload) * spec.width,
        "keys": keys * narrow(workload),
        "key gradients": keys * WIDE,
    }


def _past_bytes(workload: Workload, chunk: int) -> int:
    """The bytes for a layer's past keys in the backward.

    They are the gradients of all past keys before they are summed, or one output per offloaded block.
    """
    spec, rows, e = workload.spec, workload.rows, narrow(workload)
    inner, shared = max(layer.inner for layer in spec.layers), _shared(spec)
    past = workload.length if spec.both_ways else max(0, workload.length - chunk)
    merged = 3 * WIDE * rows * chunk * inner if past else 0
    if workload.device == "cuda":  # gradients of one call for all query heads
        run = 2 * rows * min(past, RUN) * (inner + shared) * e if past else 0
        whole = 2 * rows * (past if workload.offload == "none" else min(past, chunk)) * shared * e
        return whole + run + merged
    if workload.offload != "none":
        outs = rows * past * inner * e
        return max(outs + merged, 2 * rows * chunk * shared * (e + WIDE))
    return max(2 * rows * past * shared * e, merged)


def _shared(spec: ModelSpec) -> int:
    """The largest width of a layer's key heads."""
    return max(layer.shared for layer in spec.layers)
