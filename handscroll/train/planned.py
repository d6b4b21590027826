"""Plans a run before it starts, saves the plan in the run folder, and adds the measured values at the end."""

import json
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from handscroll.base.errors import CapacityError
from handscroll.base.portions import EDGE
from handscroll.base.records import read_records
from handscroll.base.runs import write_file
from handscroll.base.workload import MEMORY, Workload
from handscroll.plan.choose import chosen, gigabytes
from handscroll.plan.machine import GPU_SAFETY, Machine, peak_bytes, resident_bytes, this_machine
from handscroll.plan.show import Plan, clock, plan
from handscroll.train.parallel.world import ALONE, World
from handscroll.train.probe import calibrate
from handscroll.train.step import Memory, check_sharing

PLAN = "plan.json"
LONG = 120  # seconds of a run for which the machine is measured first, if it never was


@dataclass(frozen=True)
class Planned:
    """The forecast of a run, and the memory settings that it uses."""

    memory: Memory
    plan: Plan
    folder: Path

    def __str__(self) -> str:
        widest = max(self.plan.stages, key=lambda stage: stage.host)
        place = ", ".join(f"{name} {value}" for name, value in chosen(widest.workload).items())
        free = gigabytes(self.plan.machine.usable)
        if self.memory.strategy == "recurrent":
            place = "strategy recurrent, truncated: gradients end at each chunk's edge"
        card = f"GPU {gigabytes(widest.gpu)} (has {gigabytes(self.plan.machine.gpu or 0)}), " if widest.gpu else ""
        return (
            f"plan: {place}; {card}peak memory {gigabytes(widest.host)} (may use {free}), "
            f"disk {gigabytes(widest.disk)}, about {clock(self.plan.seconds)}{self.plan.power} ({self.plan.sure})"
        )

    def compare(self) -> dict[str, Any]:
        """Add the measured values to `plan.json`: peak memory of this process, and median seconds of an update."""
        actual: dict[str, Any] = {"peak": peak_bytes()}
        if torch.cuda.is_initialized():
            actual["gpu"] = torch.cuda.max_memory_reserved()
        timing = self.folder / "timing.jsonl"
        seconds = [record["seconds"] for record in read_records(timing)] if timing.exists() else []
        if seconds:
            actual["seconds_per_update"] = statistics.median(seconds)
            actual["updates"] = len(seconds)
        self.write({"actual": actual})
        return actual

    def write(self, more: dict[str, Any]) -> None:
        """Replace `plan.json`."""
        kept = {"memory": self.memory.model_dump(mode="json"), "plan": self.plan.record()} | more
        write_file(self.folder / PLAN, (json.dumps(kept, indent=2, ensure_ascii=False) + "\n").encode())


def planned(
    memory: Memory,
    workloads: Sequence[Workload],
    folder: Path,
    world: World = ALONE,
    force: bool = False,
    tell: Callable[[str], None] | None = None,
    keep: bool = True,
) -> Planned:
    """Choose the memory settings of a run, and refuse a run that cannot fit before it uses any resources.

    The run folder keeps the chosen settings, unless `keep` is false. When the run resumes, `auto` chooses the same
    again if they still fit, and if ranks that now share the tokens of a row can use them.
    Ranks on one machine share its memory evenly. Each is planned for its part of the rows and tokens, but with whole
    weights, so sharding uses less memory than planned. The first rank plans for the least of what any rank has, and all
    ranks take its settings or its refusal.

    The recurrent strategy is planned as the plain step of one chunk, because it keeps no more than that.

    With `tell`, which says so to a person, a machine that was never measured is measured before a long run, unless it
    is busy.

    Raises:
        CapacityError: the run does not fit and `force` is not given. The message names a setting that would fit.
        ConfigError: ranks share the tokens of a row, and the named strategy has no chunks.
    """
    check_sharing(memory, world)
    gpu = card_bytes() if any(one.device == "cuda" for one in workloads) else None
    machine = _least(this_machine(folder, torch.get_num_threads(), gpu), world)
    found = world.of_first(lambda: _planned(memory, workloads, folder, world, machine, tell))
    if found.plan.refusal and not force:
        raise CapacityError(f"{found.plan.refusal}; or start it anyway with --force")
    if world.first and keep:
        folder.mkdir(parents=True, exist_ok=True)
        found.write({})
    return found


def _planned(
    memory: Memory,
    workloads: Sequence[Workload],
    folder: Path,
    world: World,
    machine: Machine,
    tell: Callable[[str], None] | None,
) -> Planned:
    """The settings that one rank chooses for all of them."""
    kept = _kept(folder)
    if memory.strategy == "auto" and kept is not None and (kept.chunk or world.context == 1):
        again = plan([_part(_with(one, kept), world) for one in workloads], machine)
        if not again.refusal:
            memory = kept
    if memory.strategy == "recurrent":
        short = [one.changed(length=min(one.length, memory.chunk), strategy="plain") for one in workloads]
        return Planned(memory, plan(short, machine), folder)
    if world.context > 1:  # ranks share the tokens of a chunk, so a chunk is needed
        memory = memory.model_copy(update={"chunk": memory.chunk or 1024})
    made = plan([_part(_with(one, memory), world) for one in workloads], machine)
    idle = os.getloadavg()[0] < machine.processors / 2 if hasattr(os, "getloadavg") else True
    if tell and idle and made.seconds > LONG and not machine.calibration.measured and world.size == 1:
        tell("measuring this machine, once: about half a minute ...")
        machine = machine.model_copy(update={"calibration": calibrate(torch.get_num_threads())})
        made = plan([_part(_with(one, memory), world) for one in workloads], machine)
    settled = made.stages[0].workload
    taken = Memory(**{name: getattr(settled, name) for name in MEMORY}, folder=memory.folder)
    if world.context > 1:
        taken = taken.model_copy(update={"chunk": memory.chunk})  # the chunk of all ranks together
    return Planned(taken, made, folder)


def _least(machine: Machine, world: World) -> Machine:
    """The first rank's machine with the least memory, GPU memory and disk that any rank has."""
    own = machine.model_copy(update={"memory": machine.memory // world.neighbours})
    every = world.every(own)
    gpus = [one.gpu for one in every if one.gpu is not None]
    least = {"memory": min(one.memory for one in every), "disk": min(one.disk for one in every)}
    return every[0].model_copy(update=least | {"gpu": min(gpus, default=None)})


def card_bytes() -> int | None:
    """Bytes of the current GPU that this process has reserved or may still take; None: there is no GPU."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()


def afford(size: int, what: str, way_out: str, device: torch.device) -> None:
    """Refuse `what` if its `size` bytes are more than the memory of the device that may be planned now.

    Raises:
        CapacityError: it does not fit. The message ends with `way_out`.
    """
    if device.type == "cuda":
        free, memory = int((card_bytes() or 0) * GPU_SAFETY) - torch.cuda.memory_allocated(), "GPU memory"
    else:
        free, memory = this_machine().usable - resident_bytes(), "memory"
    if size > free:
        room = gigabytes(max(0, free))
        raise CapacityError(f"{what} takes {gigabytes(size)} of {memory}, but only {room} may be planned; {way_out}")


def _with(workload: Workload, memory: Memory) -> Workload:
    return workload.changed(**{name: getattr(memory, name) for name in MEMORY})


def _part(workload: Workload, world: World) -> Workload:
    """The part of a workload that one rank has."""
    if world.size == 1:
        return workload
    rows = max(1, workload.rows // world.data)
    chunk = -(-workload.chunk // (world.context * EDGE)) * EDGE
    return workload.changed(length=-(-workload.length // world.context), rows=rows, chunk=chunk)


def _kept(folder: Path) -> Memory | None:
    path = folder / PLAN
    if not path.exists():
        return None
    return Memory.parse(json.loads(path.read_text(encoding="utf-8"))["memory"], str(path))
