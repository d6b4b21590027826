"""Training on GPUs that are not here, on paper: memory of each, tokens a day, cost. Nothing of it is measured.

Weights, gradients and optimiser state (float32) are sharded over all ranks (FSDP, Rajbhandari et al. 2020, "ZeRO",
stage 3); a row's tokens are shared by `context_parallel` ranks, which divides activations, keys and values.
"""

from dataclasses import dataclass
from typing import Any

from handscroll.base.errors import ConfigError
from handscroll.base.workload import CHUNKED, Workload
from handscroll.plan import memory
from handscroll.plan.cards import NETWORK, card
from handscroll.plan.duration import operations
from handscroll.plan.forecast import CUDA_BASE, CUDA_HOLES
from handscroll.plan.layer import WIDE

REACHED = 0.40  # share of the peak matrix speed that well-tuned training reaches (an assumption, not looked up)
USABLE = 0.92
DAY = 86_400


@dataclass(frozen=True)
class Cluster:
    """`nodes` x `gpus` cards of one kind, `context_parallel` of which share a row."""

    nodes: int
    gpus: int
    gpu: str
    context_parallel: int = 1
    price: float = 0.0  # of a GPU for an hour, in any currency

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus


@dataclass(frozen=True)
class Paper:
    """Bytes of one GPU by part, seconds of an update, tokens a day, and the price of a day and of the run."""

    rung: str
    parts: dict[str, float]
    room: float
    compute: float
    exchange: float
    tokens: int
    day_price: float
    run_price: float
    steps: int
    assumptions: tuple[str, ...]

    @property
    def memory(self) -> float:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.memory <= self.room * USABLE

    @property
    def seconds(self) -> float:
        """Of an update; computing and exchanging do not overlap."""
        return self.compute + self.exchange

    @property
    def tokens_a_day(self) -> float:
        return self.tokens / self.seconds * DAY

    def record(self) -> dict[str, Any]:
        """As JSON."""
        names = (
            "rung",
            "parts",
            "memory",
            "room",
            "fits",
            "seconds",
            "tokens_a_day",
            "day_price",
            "run_price",
            "assumptions",
        )
        return {name: getattr(self, name) for name in names}


def on_paper(workload: Workload, cluster: Cluster) -> Paper:
    """The plan of `workload` (rows of one micro-batch of one group of `context_parallel` ranks) on a cluster.

    Rung "auto" is the first of plain, checkpoint, layer-outer and chunk-outer that fits (the last where none does).

    Raises:
        ConfigError: context_parallel does not divide the ranks, or is more than a node has; an encoder-decoder.
    """
    if workload.shape.encoder_layers:
        raise ConfigError("weights and texts of encoder-decoders are not shared by ranks: leave --nodes and --gpus out")
    if workload.rung == "auto":
        names = ("plain", "checkpoint", "layer-outer", *(() if workload.shape.both_ways else ("chunk-outer",)))
        ladder = [workload.changed(rung=name) for name in names]
        plans = [on_paper(one, cluster) for one in ladder]
        return next((found for found in plans if found.fits), plans[-1])
    shared, ranks = cluster.context_parallel, cluster.ranks
    if shared < 1 or ranks % shared or shared > cluster.gpus:
        raise ConfigError(
            f"--context-parallel {shared}: it must divide the {ranks} GPUs and stay inside a node of {cluster.gpus}"
        )
    one = card(cluster.gpu)
    shape = workload.shape
    workload = workload.changed(chunk=_chunk(workload, shared))
    part = workload.changed(length=-(-workload.length // shared), device="cuda")
    found = memory.phases(part)
    # Gradients are sharded, so the widest phase is looked for without them.
    works = [{name: size for name, size in held.items() if name != "gradients"} for held in found.values()]
    work = max(works, key=lambda held: sum(held.values()))
    gathered = 2 * 2 * (shape.layer_matrices + shape.layer_vectors) + 2 * shape.tables  # two layers, and the tables
    parts: dict[str, float] = {
        "base": CUDA_BASE,
        "weights": memory.weight_bytes(workload) / ranks,
        "gradients": WIDE * shape.trainable / ranks,
        "optimizer": memory.state_bytes(workload) / ranks,
        "average": WIDE * shape.trainable / ranks if workload.average else 0.0,
        "gathered": gathered,
        **work,
        "heap": CUDA_HOLES * sum(work.values()),
    }
    groups = ranks // shared
    compute = operations(workload) / shared / (one.flops * REACHED)
    wire = one.link if cluster.nodes == 1 else NETWORK
    # ZeRO-3: weights gathered forward and backward in bfloat16, gradients scattered in float32.
    exchange = workload.micro * (2 * 2 + WIDE) * shape.parameters * (ranks - 1) / ranks / wire
    exchange += _ring(workload, shared) / one.link
    tokens = workload.rows * workload.micro * workload.length * groups
    hours = ranks * cluster.price
    seconds = compute + exchange
    return Paper(
        rung=workload.rung,
        parts={name: size for name, size in parts.items() if size},
        room=one.memory,
        compute=compute,
        exchange=exchange,
        tokens=tokens,
        day_price=24 * hours,
        run_price=seconds * workload.steps / 3600 * hours,
        steps=workload.steps,
        assumptions=(
            f"{REACHED:.0%} of {one.flops / 1e12:,.0f} TFLOP/s (dense bfloat16) a GPU is reached",
            f"{wire / 1e9:,.0f} GB/s a GPU for weights and gradients, {one.link / 1e9:,.0f} GB/s in a node for keys",
            "computing and exchanging do not overlap; no GPU waits for data, checkpoints or another GPU",
            f"weights, gradients and optimiser state in float32, sharded over all {ranks} ranks; products in bfloat16",
            f"at most {USABLE:.0%} of a GPU's memory is planned",
        ),
    )


def _chunk(workload: Workload, shared: int) -> int:
    if workload.rung not in CHUNKED:
        return 0
    return min(workload.chunk or 2048, -(-workload.length // shared))


def _ring(workload: Workload, shared: int) -> float:
    """Bytes of keys and values that a rank receives in an update: twice forward, and back with gradients."""
    shape = workload.shape
    if shared == 1:
        return 0.0
    tokens = workload.rows * workload.micro * workload.length * (shared - 1) / shared
    return tokens * shape.layers * 2 * shape.shared * (2 + 2 + 2 + WIDE)
