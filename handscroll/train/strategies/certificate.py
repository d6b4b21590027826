"""The gradient certificate compares a strategy with the plain step on a short piece of the user's own data.

The model is copied (to float64 and to float32), and the piece is cut so that the strategy has several chunks. The loss
and all gradients are compared, by the relative distance of the whole gradient and of the worst single tensor.
"""

import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.base.portions import EDGE
from handscroll.data.batch import Batch
from handscroll.data.row import IGNORED
from handscroll.models.model import Decoder
from handscroll.nn.noise import Noise
from handscroll.nn.quantised import quantised
from handscroll.objectives.objective import Objective
from handscroll.train.step import Memory, Step, build_strategy
from handscroll.train.strategies.plain import Plain

LIMITS = {"float64": 1e-12, "float32": 1e-5}
ROUNDED = 1e-3  # in float32 over quantised weights: their products round the inputs to 16 bits
TOKENS = 4 * EDGE + EDGE // 2  # four whole chunks and part of a fifth
LARGEST = 512 << 20  # bytes of a float64 copy; for a larger model only the first layers are certified
WORST = 100.0  # factor by which a single tensor may exceed the limit, because its own norm may be tiny


@dataclass(frozen=True)
class Certificate:
    """The result of a certificate: what was compared, and the relative differences."""

    strategy: str
    tokens: int
    chunk: int
    layers: int
    of_layers: int
    float64: float
    float32: float
    worst_tensor: str
    worst_float64: float
    limits: dict[str, float]
    passed: bool

    def as_record(self) -> dict:
        return asdict(self)

    def __str__(self) -> str:
        depth = "" if self.layers == self.of_layers else f", first {self.layers} of {self.of_layers} layers"
        double, single = (f"(limit {self.limits[name]:.0e})" for name in ("float64", "float32"))
        return (
            f"gradient certificate: strategy '{self.strategy}' against the plain step on {self.tokens} tokens of this "
            f"run (chunks of {self.chunk}{depth}): relative difference {self.float64:.1e} in float64 "
            f"{double}, {self.float32:.1e} in float32 {single}; {'passed' if self.passed else 'FAILED'}"
        )


def certify(
    model: Decoder, memory: Memory, batch: Batch, objective: Objective, folder: Path, noise: Noise | None = None
) -> Certificate:
    """Compare the strategy of `memory` with the plain step on `TOKENS` tokens of a row of `batch`.

    It is the first row with targets. It is cut at its beginning, or, if the first target comes later, up to that one.

    Raises:
        ConfigError: the strategy is an approximation, no row has a target, or the gradients differ. The run must then
            not start.
    """
    if memory.strategy == "recurrent":
        raise ConfigError(
            "strategy 'recurrent' stops gradients on purpose and cannot be certified; leave --certify out"
        )
    piece = _piece(batch)
    small = memory
    if memory.strategy not in ("plain", "checkpoint"):
        sides = [piece] if piece.source is None else [piece, piece.source]
        shortest = min(side.tokens.shape[1] for side in sides)
        small = memory.model_copy(update={"chunk": min(EDGE, max(1, shortest // 4))})
    small = small.model_copy(update={"mlp_tile": 48}) if small.mlp_tile else small
    layers = _layers(model, memory)
    found: dict[str, tuple[float, str, float]] = {}
    for name, dtype in (("float64", torch.float64), ("float32", torch.float32)):
        short = _copy(model, layers, dtype).train()  # cuDNN's recurrent layers have no backward in evaluation mode
        want = _gradients(short, Step(Plain()), piece, objective, noise)
        got = _gradients(short, Step(build_strategy(small, short, folder)), piece, objective, noise)
        found[name] = _distance(got, want)
    (double, worst, farthest), (single, _, _) = found["float64"], found["float32"]
    limits = LIMITS | ({"float32": ROUNDED} if quantised(model) else {})
    passed = double <= limits["float64"] and single <= limits["float32"] and farthest <= WORST * limits["float64"]
    certificate = Certificate(
        strategy=memory.strategy,
        tokens=piece.size,
        chunk=small.chunk,
        layers=layers,
        of_layers=len(model.layers),
        float64=double,
        float32=single,
        worst_tensor=worst,
        worst_float64=farthest,
        limits=limits,
        passed=passed,
    )
    if not passed:
        raise ConfigError(f"{certificate}. Train with memory.strategy = 'plain' and report this; worst tensor: {worst}")
    return certificate


def _piece(batch: Batch) -> Batch:
    """The first row with targets and its source, each cut to `TOKENS` tokens; the row's piece holds a target."""
    found = (batch.targets != IGNORED).nonzero()
    if not len(found):
        raise ConfigError(
            "no row of the first update of the longest stage has a target, so there is no gradient to certify: leave "
            "--certify out, or give longer rows"
        )
    number, target = found[0].tolist()
    row = batch.rows(number, number + 1)
    source = None if row.source is None else row.source.part(0, min(TOKENS, row.source.tokens.shape[1]))
    first = max(0, target + 1 - TOKENS)
    piece = row.part(first, min(first + TOKENS, row.tokens.shape[1]))
    index = None if piece.index is None else piece.index.where(piece.index < 0, piece.index - first)
    return replace(piece, start=0, index=index, source=source)


def memory_needed(model: Decoder, memory: Memory) -> int:
    """Approximate bytes that `certify` takes besides the model: a float64 copy, its gradients, and both results."""
    kept = _layers(model, memory)
    left_out = [layer for side in model.stacks for layer in side.layers[kept:]]
    numbers = sum(p.numel() for p in model.parameters())
    return 4 * 8 * (numbers - sum(p.numel() for layer in left_out for p in layer.parameters()))


def _layers(model: Decoder, memory: Memory) -> int:
    """How many layers are certified (in an encoder too): all, or for a large model enough for several stages."""
    size = 8 * sum(p.numel() for p in model.parameters())
    return len(model.layers) if size <= LARGEST else min(len(model.layers), max(2, memory.stage_layers + 1))


def _copy(model: Decoder, layers: int, dtype: torch.dtype) -> Decoder:
    sides = model.stacks
    kept = [side.layers for side in sides]
    for side in sides:
        side.layers = side.layers[:layers]  # so that only the certified layers are copied
    try:
        return copy.deepcopy(model).to(dtype)
    finally:
        for side, whole in zip(sides, kept, strict=True):
            side.layers = whole


def _gradients(
    model: Decoder, step: Step, batch: Batch, objective: Objective, noise: Noise | None
) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss = step(model, [batch], objective, noise)
    found = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    return found | {"loss": loss.total.reshape(1)}


def _distance(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> tuple[float, str, float]:
    """The relative distance over all tensors, and the worst tensor's name and relative distance."""
    assert found.keys() == wanted.keys()
    apart = {name: float((found[name] - wanted[name]).norm()) for name in wanted}
    size = {name: float(wanted[name].norm()) for name in wanted}
    floor = max(size.values()) * 1e-6  # the direction of a nearly zero gradient means little
    ratios = {name: apart[name] / max(size[name], floor) for name in wanted}
    worst = max(ratios, key=lambda name: ratios[name])
    gradient = [name for name in wanted if name != "loss"]
    total = sum(size[name] ** 2 for name in gradient) ** 0.5
    whole = sum(apart[name] ** 2 for name in gradient) ** 0.5 / total
    return max(whole, apart["loss"] / size["loss"]), worst, ratios[worst]
