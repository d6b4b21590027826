"""Writes models as ONNX graphs, which onnxruntime runs: decoders with their cache as inputs and outputs, and encoders.

The graph is the model's own forward, traced by torch's exporter in float32 with the plain kernel of each operation, and
compared with the model after it was written. Names of inputs and outputs are those that other tools of the field use.
"""

import importlib.util
import json
import logging
import math
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.base.runs import write_file
from handscroll.kernels.registry import Kernel, Operation, alone
from handscroll.models.model import Decoder
from handscroll.models.sentence_folder import Sentences
from handscroll.models.sentences import pool
from handscroll.models.table import family
from handscroll.nn.attend import ATTENTION, Call
from handscroll.nn.keeper import Keeper
from handscroll.nn.marks import PADDING, Marks
from handscroll.nn.mask import Mask
from handscroll.nn.quantised import quantised
from handscroll.nn.span import Span

FILE = "model.onnx"
CLOSE = 1e-3  # largest difference of an output from the model's
APART = 2 << 30  # bytes of weights from which they lie in a file of their own; a graph holds at most 2 GiB
NUMBER = torch.int64


class Differences(NamedTuple):
    """How far the outputs of a written graph are from the model's: the largest difference, and on how many numbers."""

    largest: float
    numbers: int


class _Past(Keeper):
    """Keys and values that are inputs of the graph, and its outputs with those of the new tokens behind them."""

    def __init__(self, given: Sequence[Tensor], marks: Marks):
        self.given, self.marks, self.present = given, marks, list[Tensor]()

    def append(self, layer: int, keys: Tensor, values: Tensor, marks: Marks) -> list[Span]:
        keys = torch.cat([self.given[2 * layer], keys], dim=2)
        values = torch.cat([self.given[2 * layer + 1], values], dim=2)
        self.present += keys, values
        return [Span(keys, values, self.marks)]


@dataclass(eq=False)
class _Dense:
    """Attention as two products over all keys; the layers of a forward share the tensor of each mask."""

    allowed: dict[Mask, Tensor] = field(default_factory=dict)

    def __call__(self, q: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        (span,) = call.spans
        groups = q.shape[1] // span.keys.shape[1]
        folded = q.unflatten(1, (-1, groups)).flatten(2, 3)  # the heads that share keys lie behind each other
        scores = (folded @ span.keys.transpose(-1, -2) * call.scale).unflatten(2, (groups, -1)).flatten(1, 2)
        if call.cap is not None:
            scores = call.cap * torch.tanh(scores / call.cap)
        if call.bias is not None:
            scores = scores + call.bias.values(call.marks, span.marks, q.device)
        if call.mask not in self.allowed:
            self.allowed[call.mask] = call.mask.allowed(call.marks, span.marks, q.device).unsqueeze(1)
        # Not -inf: a padding token that leads its row sees no key, and its softmax would be no number.
        scores = scores.masked_fill(~self.allowed[call.mask], torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=-1).unflatten(1, (-1, groups)).flatten(2, 3)
        out = (weights @ span.values).unflatten(2, (groups, -1)).flatten(1, 2)
        return out, scores.logsumexp(dim=-1)


def _plainly() -> ExitStack:
    """Every operation by its plain kernel, which any tracer follows, and attention by `_Dense`."""
    stack = ExitStack()
    for operation in Operation.every:
        dense = operation is ATTENTION
        kernel = Kernel("dense", "traced", lambda *_: "", _Dense()) if dense else operation.kernels[-1]
        stack.enter_context(alone(operation, kernel))
    return stack


def _index(mask: Tensor) -> Tensor:
    """The order of each token among the real ones of its row (B, S); -1 where the mask is 0."""
    return torch.where(mask > 0, mask.cumsum(dim=1) - 1, PADDING)


class _Continued(nn.Module):
    """A decoder over its cache: logits of all given tokens, and the keys and values with theirs."""

    def __init__(self, model: Decoder, length: int):
        super().__init__()
        self.training = False  # of this module alone: the exporter warns otherwise
        self.model, self.length = model, length

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        index = _index(attention_mask)
        marks = Marks.of(index[:, past[0].shape[2] :])
        kept = _Past(past, Marks.of(index))
        with _plainly():
            embedded = self.model.embed(input_ids, marks)
            states = self.model.hidden(embedded, marks, self.model.mask(), kept, self.length)
            return (self.model.logits(states), *kept.present)


class _Whole(nn.Module):
    """A model that reads whole texts: its states and the vector of each text, or what its head says."""

    def __init__(self, model: Decoder, length: int, recipe: Sentences, outputs: Sequence[str]):
        super().__init__()
        self.training = False  # of this module alone: the exporter warns otherwise
        self.model, self.length, self.recipe, self.outputs = model, length, recipe, tuple(outputs)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, kinds: Tensor | None = None) -> tuple[Tensor, ...]:
        with _plainly():
            return self.read(input_ids, attention_mask, kinds)

    def read(self, ids: Tensor, mask: Tensor, kinds: Tensor | None = None) -> tuple[Tensor, ...]:
        """The outputs, by whichever kernels are chosen."""
        marks, model = Marks.of(_index(mask), kinds=kinds), self.model
        states = model.hidden(model.embed(ids, marks), marks, model.mask(), length=self.length)
        return tuple(self._output(name, states, mask) for name in self.outputs)

    def _output(self, name: str, states: Tensor, mask: Tensor) -> Tensor:
        head = self.model.spec.head
        if name == STATES:
            return states
        if name == VECTOR:
            vectors = _pooled(states, mask, self.recipe.pooling)
            return nn.functional.normalize(vectors, dim=1) if self.recipe.normalise else vectors
        if head is None:
            return self.model.logits(states)
        if head.kind == "text":
            states = _pooled(states, mask, {"first": "cls"}.get(head.pool, head.pool))
        found = self.model.judge(states)
        return found[..., ENDS.index(name)] if name in ENDS else found


LOGITS, STATES, VECTOR = "logits", "last_hidden_state", "sentence_embedding"
ENDS = ("start_logits", "end_logits")


def _pooled(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    lengths, real = mask.sum(dim=1), (mask > 0).unsqueeze(-1)
    return torch.cat([pool(states, real, lengths, mode) for mode in pooling.split("+")], dim=1)


@dataclass(frozen=True, eq=False)
class Graph:
    """A module to be traced, an example of its inputs, and the names of its inputs and outputs."""

    module: nn.Module
    inputs: tuple[Any, ...]
    names: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def cached(self) -> bool:
        """Whether keys and values are among the inputs."""
        return isinstance(self.inputs[-1], list)

    @property
    def shapes(self) -> tuple[Any, ...]:
        """The names of the sizes that are free, in the structure of `inputs`."""
        new, every = {0: "batch", 1: "tokens"}, {0: "batch", 1: "all_tokens"}
        if self.cached:
            return new, every, [{0: "batch", 2: "past"}] * len(self.inputs[-1])
        return (new,) * len(self.inputs)


def graph_of(model: Decoder, recipe: Sentences | None = None, length: int | None = None) -> Graph:
    """The graph of a model for requests of up to `length` tokens (None: its context).

    Raises:
        ConfigError: such a model has no graph; says why, and what to do instead.
    """
    _refuse(model)
    spec, length = model.spec, model.spec.declared(length or model.config.context)
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 0]]) % spec.vocab
    if spec.reads == "forward" and spec.predicts:
        past = [torch.zeros(2, one.kv_heads, 3, one.head_size) for one in spec.layers for _ in range(2)]
        names = [f"{{}}.{layer}.{part}" for layer in range(len(spec.layers)) for part in ("key", "value")]
        inputs = (ids, torch.ones(2, 7, dtype=NUMBER), past)
        given = ("input_ids", "attention_mask", *(name.format("past_key_values") for name in names))
        return Graph(_Continued(model, length), inputs, given, (LOGITS, *(name.format("present") for name in names)))
    kinds = getattr(model.config, "kinds", 0) > 1
    names = ("input_ids", "attention_mask", *(["token_type_ids"] if kinds else []))
    inputs = (ids, torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]), *([torch.zeros_like(ids)] if kinds else []))
    recipe, head = recipe or Sentences(), spec.head
    if head is not None and head.kind != "none":
        outputs = ENDS if head.kind == "answer" else (LOGITS,)
    else:
        outputs = (STATES, *([] if recipe.refused else [VECTOR]), *([LOGITS] if spec.predicts else []))
    return Graph(_Whole(model, length, recipe, outputs), inputs, names, tuple(outputs))


def _refuse(model: Decoder) -> None:
    spec = model.spec
    family, instead = f"family '{spec.family}'", "no ONNX graph is written; "
    if quantised(model):
        raise ConfigError(f"the weights are quantised: {instead}load the model with weights='float'")
    if spec.recurrent:
        raise ConfigError(f"{family} is recurrent, a loop over tokens: {instead}export a model with attention")
    if spec.reads in ("source", "blanks"):
        what = "reads a source beside its text" if spec.reads == "source" else "fills blanks in two orders of tokens"
        raise ConfigError(f"{family} {what}, which no common layout of ONNX holds: {instead}serve it from here")
    if any(layer.experts for layer in spec.layers):
        raise ConfigError(f"{family} chooses experts token by token, which a graph cannot: {instead}use a dense model")
    if spec.several_distances:
        raise ConfigError(
            f"its positions ({spec.describe_positions()}) are read at several distances, as only this package does: "
            f"{instead}lengthen it by yarn or longrope instead (handscroll extend ... --method yarn)"
        )


def save_onnx(graph: Graph, folder: Path, about: dict[str, Any]) -> Differences:
    """Write the graph (and, where they are large, its weights beside it) into a folder, and compare it with the model.

    `about` is kept in the file as JSON. Nothing is left in the folder unless the outputs agree to `CLOSE`.

    Raises:
        ConfigError: the extra `onnx` is not installed. CheckpointError: the outputs differ.
    """
    _installed()
    model = graph.module.model
    assert isinstance(model, Decoder)
    drafts = folder / "onnx.tmp"
    if drafts.exists():  # left by an export that was killed
        shutil.rmtree(drafts)
    drafts.mkdir(parents=True)
    try:
        _trace(graph, drafts / FILE, about)
        differences = compare(graph, drafts / FILE)
        if not differences.largest <= CLOSE:
            raise CheckpointError(
                f"the graph's outputs differ from the model's by {differences.largest:.1e}, more than {CLOSE:g}; "
                "nothing was written. Please report the family and its config.json"
            )
        config = family(model.config.family).write(model.config) | {"torch_dtype": "float32"}
        write_file(drafts / "config.json", (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode())
        for draft in drafts.iterdir():
            draft.rename(folder / draft.name)
    finally:
        shutil.rmtree(drafts)
        if not any(folder.iterdir()):
            folder.rmdir()
    return differences


def _trace(graph: Graph, path: Path, about: dict[str, Any]) -> None:
    model = graph.module
    sizes = sum(parameter.numel() * 4 for parameter in model.parameters())
    # With gradients the MLP reads all tokens at once. What the exporter warns of is its own: calls that are deprecated,
    # libraries that are not here, sizes that share a name. What matters is compared.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with torch.enable_grad(), warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(
            model,
            graph.inputs,
            dynamo=True,
            input_names=list(graph.names),
            output_names=list(graph.outputs),
            dynamic_shapes=graph.shapes,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props["handscroll"] = json.dumps(about, ensure_ascii=False)
    program.save(path, external_data=sizes > APART)


def _installed() -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"an ONNX graph needs the packages onnx, onnxscript and onnxruntime, and {missing[0]} is not installed: "
            "pip install 'handscroll[onnx]'"
        )


def compare(graph: Graph, path: Path) -> Differences:
    """How far a written graph is from the model, on two rows of different lengths; a decoder reads them in pieces.

    The model computes by the kernels that it always uses.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of each number that it can leave out
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    largest, numbers = 0.0, 0
    with torch.no_grad():
        for ours, theirs in (_pieces if graph.cached else _rows)(graph, session):
            apart = float((ours - theirs).abs().max())
            largest, numbers = max(largest, math.inf if math.isnan(apart) else apart), numbers + ours.numel()
    return Differences(largest, numbers)


def _rows(graph: Graph, session: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of outputs of an encoder, for rows that are padded on the right, and alone for the model."""
    module = graph.module
    assert isinstance(module, _Whole)
    tokens, mask = _example(module.model)
    given = [tokens, mask.flip(1), *([torch.zeros_like(tokens)] if len(graph.inputs) > 2 else [])]
    theirs = session.run(None, {name: one.numpy() for name, one in zip(graph.names, given, strict=True)})
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        ours = module.read(*(one[row : row + 1, :length] for one in given))
        for mine, their in zip(ours, theirs, strict=True):
            yield mine[0], torch.from_numpy(their[row])[: mine.shape[1]]  # without the padding


def _pieces(graph: Graph, session: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of logits of a decoder, for rows that are padded on the left, read piece by piece over their cache."""
    module = graph.module
    assert isinstance(module, _Continued)
    model, (tokens, mask) = module.model, _example(module.model)
    count, hidden = tokens.shape[1], []
    skipped = (count - mask.sum(dim=1)).tolist()
    for row, first in zip(tokens, skipped, strict=True):
        marks = Marks.run(0, count - first)
        embedded = model.embed(row[None, first:], marks)
        hidden.append(model.hidden(embedded, marks, model.mask(), length=module.length))
    past = [one.new_zeros(2, one.shape[1], 0, one.shape[3]).numpy() for one in graph.inputs[-1]]
    single = max(0, count - SINGLE)
    edges = sorted({*range(0, single, PIECE), *range(single, count + 1)})
    for first, last in pairwise(edges):
        given = [tokens[:, first:last].numpy(), mask[:, :last].numpy(), *past]
        logits, *past = session.run(None, dict(zip(graph.names, given, strict=True)))
        for row, left in enumerate(skipped):
            if (start := max(first, left)) < last:
                ours = model.logits(hidden[row][:, start - left : last - left])[0]
                yield ours, torch.from_numpy(logits[row, start - first :])


PIECE, SINGLE = 32, 4  # tokens of a piece, and how many are read one by one at the end
LONGEST = 640  # tokens of the comparison; longer than the windows of most models that have some
PADDED = 7


def _example(model: Decoder) -> tuple[Tensor, Tensor]:
    """Two rows of tokens that reach beyond the windows, and the mask of the real ones; the second row begins later."""
    window = min((one for one in model.windows if one is not None), default=0)
    count = min(model.config.context, LONGEST, window + 2 * PIECE)
    stream = torch.Generator().manual_seed(0)
    tokens, mask = torch.randint(model.spec.vocab, (2, count), generator=stream), torch.ones(2, count, dtype=NUMBER)
    mask[1, : min(PADDED, count - 1)] = 0
    return tokens, mask
