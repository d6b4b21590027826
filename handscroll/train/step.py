"""`Step` computes the loss and the accumulated gradients of one update's micro-batches, with any memory strategy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator

from handscroll.base.config import Config
from handscroll.base.errors import ConfigError
from handscroll.base.portions import EDGE
from handscroll.data.batch import Batch
from handscroll.models.model import Decoder
from handscroll.nn.noise import Noise
from handscroll.objectives.loss import Loss, summed
from handscroll.objectives.objective import Objective
from handscroll.train.parallel.world import ALONE, World
from handscroll.train.strategies.blocks import Blocks, DiskBlocks, HostBlocks
from handscroll.train.strategies.plain import Plain
from handscroll.train.strategies.recurrent import Recurrent
from handscroll.train.strategies.staged import Staged
from handscroll.train.strategies.strategy import Pass, Strategy


class Memory(Config):
    """The memory strategy, and where it stores the tensors that it keeps. All exact strategies give the same gradients.

    - plain keeps everything.
    - checkpoint keeps the layer inputs.
    - chunk-outer keeps keys, values and their gradients.
    - layer-outer keeps the layer inputs, and keys and values of one layer.
    - staged lies between the last two and works on `stage_layers` layers at a time.
    - auto lets the planner choose the fastest one that fits.
    - recurrent is truncated and not exact. It keeps `remembered` keys and values before each chunk.
    """

    strategy: Literal["auto", "plain", "checkpoint", "chunk-outer", "layer-outer", "staged", "recurrent"] = "auto"
    chunk: int = Field(default=0, ge=0, description="tokens of a chunk, a multiple of 64; 0: the planner's choice")
    stage_layers: int = Field(default=0, ge=0, description="staged: layers of a stage")
    mlp_tile: int = Field(default=0, ge=0, description="tokens the MLP sees at a time; 0: all of the chunk")
    remembered: int = Field(default=0, ge=0, description="recurrent: keys and values kept before a chunk")
    offload: Literal["none", "host", "disk"] = Field(default="none", description="where chunked strategies store data")
    folder: str = Field(default="", description="offload = 'disk': folder of the unnamed file; default: the run folder")

    @model_validator(mode="after")
    def _meant(self):
        if self.chunk % EDGE:
            raise ValueError(f"chunk {self.chunk} is not a multiple of {EDGE}")
        if (self.strategy == "staged") != bool(self.stage_layers):
            raise ValueError("stage_layers belongs to strategy 'staged', and 'staged' needs it")
        if (self.strategy == "recurrent") != bool(self.remembered):
            raise ValueError("remembered belongs to strategy 'recurrent', and 'recurrent' needs it")
        if self.strategy == "recurrent" and (not self.chunk or self.offload != "none"):
            raise ValueError("strategy 'recurrent' needs a chunk and offloads nothing")
        if self.strategy in ("plain", "checkpoint") and (self.chunk or self.offload != "none"):
            raise ValueError(f"strategy '{self.strategy}' has no chunks and offloads nothing: leave both out")
        if self.folder and self.offload != "disk":
            raise ValueError("folder belongs to offload = 'disk'")
        return self


class Abandoned(Exception):
    """A step was abandoned between two chunks on request. Its gradients are invalid; the weights are unchanged."""


def check_sharing(memory: Memory, world: World) -> None:
    """Refuse a strategy without chunks for ranks that share the tokens of a row.

    Raises:
        ConfigError: it has none; the message names those that have.
    """
    if memory.strategy in ("plain", "checkpoint") and world.context > 1:
        raise ConfigError(
            f"parallel.context = {world.context} shares the tokens of a row chunk by chunk, but strategy "
            f"'{memory.strategy}' has no chunks: choose memory.strategy = 'chunk-outer', 'layer-outer' or 'staged'"
        )


def build_strategy(memory: Memory, model: Decoder, folder: Path, world: World = ALONE) -> Strategy:
    """Build the strategy of resolved settings (the planner resolves `auto`). `folder` is for offloading.

    Raises:
        ConfigError: the settings ask for offload = 'host' while the model is on the CPU, for ranks that share tokens
            with a strategy without chunks, or for a combination that the model does not support.
    """
    assert memory.strategy != "auto", "resolve settings first (plan/choose.py)"
    device = model.device
    if memory.offload == "host" and device.type == "cpu":
        raise ConfigError("memory.offload = 'host' while the model is on the CPU frees no memory; use 'disk'")
    check_sharing(memory, world)
    if model.spec.encoder and memory.strategy not in ("plain", "checkpoint", "layer-outer"):
        raise ConfigError(
            f"strategy '{memory.strategy}' works on several layers at once, but each encoder layer of family "
            f"'{model.config.family}' needs the whole output of the layer below: choose memory.strategy = "
            "'layer-outer', 'checkpoint' or 'plain'"
        )
    if model.spec.encoder and world.context > 1:
        raise ConfigError(
            f"parallel.context = {world.context} shares the tokens of one text, but family '{model.config.family}' "
            "also reads a source: leave parallel.context out"
        )
    if memory.strategy == "recurrent":
        if world.size > 1:
            raise ConfigError("strategy 'recurrent' runs in one process only; start the run without torchrun")
        recurrent = Recurrent(memory.chunk, memory.remembered, memory.mlp_tile)
        recurrent.check(model)
        return recurrent
    if memory.strategy in ("plain", "checkpoint"):
        return Plain(recompute=memory.strategy == "checkpoint", mlp_tile=memory.mlp_tile)
    places: dict[str, Callable[[], Blocks] | None] = {
        "none": None,
        "host": lambda: HostBlocks(device),
        "disk": lambda: DiskBlocks(Path(memory.folder or folder), device),
    }
    layers = {"chunk-outer": 0, "layer-outer": 1, "staged": memory.stage_layers}[memory.strategy]
    return Staged(memory.chunk or 1024, layers, memory.mlp_tile, places[memory.offload])


@dataclass(frozen=True)
class Step:
    """Computes the loss of one update and adds its gradients to `.grad`, with a strategy and in a world of ranks."""

    strategy: Strategy
    world: World = ALONE
    autocast: torch.dtype | None = None

    def __call__(
        self,
        model: Decoder,
        batches: Sequence[Batch],
        objective: Objective,
        noise: Noise | None = None,
        pulse: Callable[[float], None] | None = None,
    ) -> Loss:
        """Run the micro-batches `batches` of one update. Every rank gets all of them and runs its rows and tokens.

        The loss of every micro-batch is divided by the count of all of them together. So one step of 8 rows and two of
        4 give the same gradient, whatever their padding. `pulse(done)` is called between chunks and may raise
        `Abandoned`.
        """
        count = sum(batch.counted for batch in batches)
        losses: list[Loss] = []
        first_row = 0
        for number, batch in enumerate(batches):
            mine, first = self.world.rows(batch.part(0, batch.filled))
            here = None if noise is None else replace(noise, first_row=first_row + first)
            beat = _shared(pulse, number, len(batches))
            length, start = batch.tokens.shape[1], first_row + first
            request = Pass(objective, max(1, count), length, self.autocast, here, self.world, start, beat)
            losses.append(self.strategy(model, mine.to(model.device), request).detached())
            first_row += batch.tokens.shape[0]
        self.world.sum_gradients(model)
        together = summed(losses)
        flat = [float(together.total), *(float(part) for pair in together.metrics.values() for part in pair)]
        total, *rest = self.world.sum(flat)
        pairs = zip(rest[::2], map(int, rest[1::2]), strict=True)
        metrics = dict(zip(together.metrics, pairs, strict=True))
        return Loss(torch.tensor(total, dtype=torch.float64), count, metrics)


def _shared(pulse: Callable[[float], None] | None, number: int, parts: int) -> Callable[[float], None]:
    """The pulse for one of several micro-batches."""
    if pulse is None:
        return lambda done: None
    return lambda done: pulse((number + done) / parts)
