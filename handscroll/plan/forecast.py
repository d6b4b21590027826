"""`predict`: memory, disk and time of a workload on a machine, with the parts they are made of."""

import math
from dataclasses import dataclass, field
from typing import Any

from handscroll.base.workload import CHUNKED, Workload
from handscroll.plan import inference, memory
from handscroll.plan.calibration import GPU
from handscroll.plan.duration import seconds
from handscroll.plan.machine import Machine
from handscroll.plan.memory import Parts

# What the C library's heap takes on top of tensors although every strategy trims it (base/allocator.py): bytes,
# and shares of the short-lived tensors: always, more with LoRA, more for packed rows (120 runs, 2026-11).
HEAP = {"plain": (20_000_000, 0.07, 0.12, 0.0), "checkpoint": (30_000_000, 0.25, 0.4, 0.1)}
HEAP_CHUNKED = (2_000_000, 0.25, 0.25, 0.08)
NARROW_BASE = 12 << 20  # oneDNN's bfloat16 kernels, which the probe's bare process has not made
# On a GPU: context, loaded kernels and their workspaces; and what the allocator loses to holes among activations (20
# runs and 8 long steps on an H200, 2026-11). What waits from chunk to chunk lies in few large tensors and leaves none.
CUDA_BASE, CUDA_HOLES = 900_000_000, 0.05
PASSING = ("kept", "work", "loss", "update")


@dataclass(frozen=True)
class Forecast:
    """What a workload will take. `parts` add up to `host` (on a GPU: to `gpu`); `phase` is the moment of the peak."""

    workload: Workload
    host: int
    gpu: int
    disk: int
    seconds: float
    phase: str
    parts: dict[str, int] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens of an update, or of a request."""
        return self.workload.rows * self.workload.micro * self.workload.length

    def record(self) -> dict[str, Any]:
        """As JSON, for `plan.json` in the run folder and for --json."""
        names = ("host", "gpu", "disk", "phase", "parts")
        rounded = float(f"{self.seconds:.4g}") if math.isfinite(self.seconds) else None
        return {name: getattr(self, name) for name in names} | {
            "seconds": rounded,
            "workload": self.workload.model_dump(),
        }


def predict(workload: Workload, machine: Machine) -> Forecast:
    """The forecast of a workload whose strategy and chunk are settled (`resolve` settles them).

    Host memory is the peak of resident pages (VmHWM) of the one process: base + weights + what stays + the largest
    phase + what the heap wastes. Measured errors: docs/plan.md. Limits: one process; validation, tokenizer training
    and reading the text are not in it; on a GPU the numbers are counted, not measured.
    """
    assert workload.strategy != "auto" or workload.kind in ("generate", "serve"), "plan.resolve comes first"
    assert workload.chunk or workload.strategy not in CHUNKED, "settle the chunk first (plan.resolve)"
    train = workload.kind in ("train", "extend")
    source = memory if train else inference
    fixed, found = source.fixed_parts(workload), source.phases(workload)
    phase = max(found, key=lambda name: sum(found[name].values()))
    parts = {name: size for name, size in (fixed | found[phase]).items() if size}
    gpu = workload.device == "cuda"
    narrow = NARROW_BASE if workload.precision == "bfloat16" else 0
    base = CUDA_BASE if gpu else machine.calibration.base + narrow
    parts = {"base": base} | parts | {"heap": _heap(workload, found[phase])}
    total = sum(parts.values())
    held = 0
    if gpu and workload.offload == "host":
        held = sum(memory.carried(workload).values())
    host = machine.calibration.base + held if gpu else total
    return Forecast(
        workload,
        host=host,
        gpu=total if gpu else 0,
        disk=disk_bytes(workload),
        seconds=seconds(workload, GPU if gpu else machine.calibration) if train else math.nan,
        phase=phase,
        parts=parts,
    )


def beside(workload: Workload) -> Parts:
    """What a request takes beside a model that is loaded: cache, ids, the larger phase, and what the heap wastes."""
    fixed, found = inference.fixed_parts(workload), inference.phases(workload)
    phase = max(found.values(), key=lambda parts: sum(parts.values()))
    parts = {name: size for name, size in (fixed | phase).items() if name != "weights"}
    return parts | {"heap": _heap(workload, phase)}


def disk_bytes(workload: Workload) -> int:
    """Checkpoints (one more than are kept while a new one is written), the saved model, and the offload file."""
    if workload.kind not in ("train", "extend"):
        filed = inference.footprint(workload).filed
        return math.ceil(workload.rows * filed * (workload.length + max(0, workload.new - 1)))
    each = 4 * workload.trainable * (2 if workload.average else 1) + memory.state_bytes(workload)
    offloaded = sum(memory.carried(workload).values()) if workload.offload == "disk" else 0
    return (workload.keep + 1) * each + memory.weight_bytes(workload) + offloaded


def _heap(workload: Workload, phase: Parts) -> int:
    """What the allocator takes besides what tensors ask for."""
    short = sum(size for name, size in phase.items() if name != "gradients")
    if workload.device == "cuda":
        return int(CUDA_HOLES * sum(phase.get(name, 0) for name in PASSING))
    least, share, adapted, packed = HEAP.get(workload.strategy, HEAP_CHUNKED)
    if workload.spec.recurrent and workload.strategy == "plain":
        least = 10_000_000
    elif workload.spec.both_ways and workload.strategy in CHUNKED:  # every layer is gone through six times in chunks
        least = 20_000_000
    share += (adapted if workload.lora else 0) + (packed if workload.packed else 0)
    return int(least + share * short)
