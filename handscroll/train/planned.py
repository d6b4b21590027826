"""A run asks the planner before it starts, keeps the answer, and writes beside it what really happened."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from handscroll.base.errors import CapacityError
from handscroll.base.records import read_records
from handscroll.base.runs import write_file
from handscroll.base.workload import MEMORY, Workload
from handscroll.plan.choose import chosen, gigabytes
from handscroll.plan.machine import peak_bytes, resident_bytes, this_machine
from handscroll.plan.show import Plan, clock, plan
from handscroll.train.parallel.world import ALONE, World
from handscroll.train.step import EDGE, Memory

PLAN = "plan.json"


@dataclass(frozen=True)
class Planned:
    """What was predicted for a run, and the settings that it takes."""

    memory: Memory
    plan: Plan
    folder: Path

    def __str__(self) -> str:
        widest = max(self.plan.stages, key=lambda stage: stage.host)
        place = ", ".join(f"{name} {value}" for name, value in chosen(widest.workload).items())
        free = gigabytes(self.plan.machine.usable)
        if self.memory.strategy == "recurrent":
            place = "strategy recurrent, truncated: what is learned from ends at each chunk's edge"
        card = f"GPU {gigabytes(widest.gpu)} (has {gigabytes(self.plan.machine.gpu)}), " if widest.gpu else ""
        return (
            f"plan: {place}; {card}peak memory {gigabytes(widest.host)} (may use {free}), "
            f"disk {gigabytes(widest.disk)}, about {clock(self.plan.seconds)}"
        )

    def compare(self) -> dict[str, Any]:
        """Plan against actual, written to `plan.json`: peak memory of this process, median seconds of an update."""
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
    memory: Memory, workloads: Sequence[Workload], folder: Path, world: World = ALONE, force: bool = False
) -> Planned:
    """Settle the memory settings of a run and refuse one that cannot fit, before anything is spent.

    A run folder keeps what was settled: `auto` means the same again when it goes on, as long as that still fits.
    Ranks on one machine share its memory evenly, and are planned for their part of the rows and tokens, with whole
    weights: sharding them leaves more room than is planned.

    The recurrent form is planned as the plain step of one chunk: it keeps no more.

    Raises:
        CapacityError: it will not fit and `force` is not given; names the setting that would.
    """
    gpu = card_bytes() if any(one.device == "cuda" for one in workloads) else 0
    machine = this_machine(folder, torch.get_num_threads(), gpu)
    machine = machine.model_copy(update={"memory": machine.memory // world.neighbours})
    kept = _kept(folder)
    if memory.strategy == "auto" and kept is not None:
        again = plan([_part(_with(one, kept), world) for one in workloads], machine)
        if not again.refusal:
            memory = kept
    if memory.strategy == "recurrent":
        short = [one.changed(length=min(one.length, memory.chunk), strategy="plain") for one in workloads]
        return _written(Planned(memory, plan(short, machine), folder), world, force)
    if world.context > 1:  # ranks share chunks; plain rows have none
        memory = memory.model_copy(update={"chunk": memory.chunk or 1024})
    made = plan([_part(_with(one, memory), world) for one in workloads], machine)
    settled = made.stages[0].workload
    taken = Memory(**{name: getattr(settled, name) for name in MEMORY}, folder=memory.folder)
    if world.context > 1:
        taken = taken.model_copy(update={"chunk": memory.chunk})  # of all ranks together
    return _written(Planned(taken, made, folder), world, force)


def card_bytes() -> int:
    """Bytes of the current GPU that this process has or may take."""
    return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()


def afford(size: int, what: str, way_out: str) -> None:
    """Refuse `what` if it takes `size` bytes more than may be planned now.

    Raises:
        CapacityError: it will not fit; names `way_out`.
    """
    machine = this_machine()
    free = machine.usable - resident_bytes()
    if size > free:
        raise CapacityError(f"{what} takes {gigabytes(size)}, and {gigabytes(max(0, free))} may be planned; {way_out}")


def _written(found: Planned, world: World, force: bool) -> Planned:
    """Refuse, or keep the plan in the run folder."""
    if found.plan.refusal and not force:
        raise CapacityError(f"{found.plan.refusal}; or start it all the same with --force")
    if world.first:
        found.folder.mkdir(parents=True, exist_ok=True)
        found.write({})
    return found


def _with(workload: Workload, memory: Memory) -> Workload:
    return workload.changed(**{name: getattr(memory, name) for name in MEMORY})


def _part(workload: Workload, world: World) -> Workload:
    """What one rank has of it."""
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
