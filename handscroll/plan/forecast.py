"""Predicts the memory, disk and time of a workload on a machine, with the parts of the memory."""

import math
from dataclasses import dataclass, field
from typing import Any

from handscroll.base.workload import BEST, CHUNKED, Workload
from handscroll.plan import inference, memory
from handscroll.plan.calibration import GPU, Calibration
from handscroll.plan.duration import reading, seconds, writing
from handscroll.plan.machine import Machine
from handscroll.plan.memory import Parts

# Memory that the C library's heap takes besides the tensors, although every strategy trims it (base/allocator.py):
# bytes, a share of the short-lived tensors, and additional shares with LoRA and for packed rows (120 runs, 2026-11).
HEAP = {"plain": (20_000_000, 0.07, 0.12, 0.0), "checkpoint": (30_000_000, 0.25, 0.4, 0.1)}
HEAP_CHUNKED = (2_000_000, 0.25, 0.25, 0.08)
TRAINED = 90 << 20  # of the probe's process, which has trained: what a process that only generates does not hold
NARROW_BASE = 12 << 20  # oneDNN's bfloat16 kernels, which the probe's bare process did not load
# On a GPU: the context with loaded kernels and their workspaces, and the share that the allocator loses to holes
# between activations (20 runs and 8 long steps on an H200, 2026-11). Tensors kept from chunk to chunk are few and large
# and leave no holes.
CUDA_BASE, CUDA_HOLES = 900_000_000, 0.05
PASSING = ("kept", "work", "loss", "update")


@dataclass(frozen=True)
class Forecast:
    """The predicted memory, disk and time of a workload, in bytes and seconds of an update.

    `parts` add up to `host` (on a GPU: to `gpu`). `phase` is the phase with the peak. `times` add up to `seconds`.
    """

    workload: Workload
    host: int
    gpu: int
    disk: int
    seconds: float
    phase: str
    parts: dict[str, int] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """The tokens of an update or of a request."""
        return self.workload.rows * self.workload.micro * self.workload.length

    def record(self) -> dict[str, Any]:
        """The forecast as JSON, for `plan.json` in the run folder and for --json."""
        names = ("host", "gpu", "disk", "phase", "parts")
        rounded = float(f"{self.seconds:.4g}") if math.isfinite(self.seconds) else None
        return {name: getattr(self, name) for name in names} | {
            "seconds": rounded,
            "workload": self.workload.model_dump(),
        }


def predict(workload: Workload, machine: Machine) -> Forecast:
    """The forecast of a workload whose strategy and chunk are chosen (`resolve` chooses them).

    Host memory is the peak of resident pages (VmHWM) of the process: base + weights + other fixed parts + the largest
    phase + the waste of the heap. docs/plan.md gives the measured errors. Limits: one process. Validation, tokenizer
    training and reading the text are not included. On a GPU the base and the speeds are those of an H200.
    """
    assert workload.strategy != "auto" or workload.kind in ("generate", "serve"), "resolve comes first (plan/choose.py)"
    assert workload.chunk or workload.strategy not in CHUNKED, "settle the chunk first (plan/choose.py)"
    train = workload.kind in ("train", "extend")
    source = memory if train else inference
    fixed, found = source.fixed_parts(workload), source.phases(workload)
    phase = max(found, key=lambda name: sum(found[name].values()))
    parts = {name: size for name, size in (fixed | found[phase]).items() if size}
    gpu = workload.device == "cuda"
    narrow = NARROW_BASE if workload.precision == "bfloat16" else 0
    base = CUDA_BASE if gpu else machine.calibration.base + narrow - (0 if train else TRAINED)
    parts = {"base": base} | parts | {"heap": _heap(workload, found[phase])}
    total = sum(parts.values())
    times = _times(workload, GPU if gpu else machine.calibration)
    host = machine.calibration.base + memory.host_bytes(workload) if gpu else total
    return Forecast(
        workload,
        host=host,
        gpu=total if gpu else 0,
        disk=disk_bytes(workload),
        seconds=sum(times.values()) if times else math.nan,
        phase=phase,
        parts=parts,
        times=times,
    )


def _times(workload: Workload, calibration: Calibration) -> dict[str, float]:
    """The seconds of an update, or of the steps of a request; empty where they are not known."""
    if workload.kind in ("train", "extend"):
        return {"update": seconds(workload, calibration)}
    if workload.kind != "generate" or workload.spec.encoder or workload.spec.recurrent:
        return {}
    return {"reading": reading(workload, calibration), "writing": writing(workload, calibration)}


def beside(workload: Workload) -> Parts:
    """The memory of a request beside the loaded model: cache, ids, the larger phase, and the waste of the heap."""
    fixed, found = inference.fixed_parts(workload), inference.phases(workload)
    phase = max(found.values(), key=lambda parts: sum(parts.values()))
    parts = {name: size for name, size in (fixed | phase).items() if name not in ("weights", "tokenizer")}
    return parts | {"heap": _heap(workload, phase)}


def disk_bytes(workload: Workload) -> int:
    """The bytes on disk: checkpoints, copies of the best weights, the saved model, and the offload file.

    While a new checkpoint is written, there is one more than are kept. For a request it is the cache on disk.
    """
    if workload.kind not in ("train", "extend"):
        filed = inference.footprint(workload).filed
        return math.ceil(workload.rows * filed * (workload.length + max(0, workload.new - 1)))
    each = 4 * workload.trainable * (2 if workload.average else 1) + memory.state_bytes(workload)
    offloaded = sum(memory.carried(workload).values()) if workload.offload == "disk" else 0
    best = (workload.keep + BEST) * 4 * workload.trainable if workload.best else 0
    return (workload.keep + 1) * each + best + memory.weight_bytes(workload) + offloaded


def _heap(workload: Workload, phase: Parts) -> int:
    """The memory that the allocator takes besides the tensors."""
    short = sum(size for name, size in phase.items() if name != "gradients")
    if workload.device == "cuda":
        return int(CUDA_HOLES * sum(phase.get(name, 0) for name in PASSING))
    least, share, adapted, packed = HEAP.get(workload.strategy, HEAP_CHUNKED)
    if workload.spec.recurrent and workload.strategy == "plain":
        least = 10_000_000
    elif workload.spec.both_ways and workload.strategy in CHUNKED:  # every layer runs six times in chunks
        least = 20_000_000
    share += (adapted if workload.lora else 0) + (packed if workload.packed else 0)
    return int(least + share * short)
