"""The entry to planning: `plan` makes the `Plan` of a run, and `plan_lines` its tables, as the command prints them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from handscroll.base.errors import CapacityError
from handscroll.base.workload import MEMORY, Workload
from handscroll.plan.choose import check, chosen, fits, gigabytes, options, unseen, widest
from handscroll.plan.forecast import Forecast, predict
from handscroll.plan.machine import GPU_SAFETY, Machine

Line = str | tuple[str, list[str], list[list[str]]]
TRAINING = ("train", "extend")
VERDICTS = {True: "fits", False: "does not fit", None: "not known"}


@dataclass(frozen=True)
class Plan:
    """The plan of all stages of a run on a machine. `refusal` is empty if the run fits."""

    machine: Machine
    stages: tuple[Forecast, ...]
    others: tuple[Forecast, ...]
    refusal: str

    @property
    def seconds(self) -> float:
        """The seconds of all updates of all stages."""
        return sum(stage.seconds * stage.workload.steps for stage in self.stages)

    @property
    def energy(self) -> float | None:
        """The energy of all updates in watt-hours: their seconds times what the machine draws; None: unknown."""
        if not self.machine.watts or math.isnan(self.seconds):
            return None
        return self.seconds * self.machine.watts / 3600

    @property
    def power(self) -> str:
        """The energy in words, with a comma before it; empty if it is unknown."""
        return "" if self.energy is None else f", {self.energy:.2g} Wh at {self.machine.watts:g} W"

    @property
    def fits(self) -> bool | None:
        """Whether the run fits; None: it needs a GPU, and none was seen."""
        return _judged(not self.refusal, self.stages[0], self.machine)

    @property
    def sure(self) -> str:
        """How far the times may be off."""
        if self.machine.calibration.measured:
            return "give or take 30 % on a machine with nothing else to do"
        return "this machine was not measured (--probe), so it may take a third or three times as long"

    def record(self) -> dict[str, Any]:
        """The plan as JSON, for `plan.json` of a run folder and for --json."""
        seconds = None if math.isnan(self.seconds) else round(self.seconds, 3)
        return {
            "machine": self.machine.model_dump(),
            "stages": [stage.record() for stage in self.stages],
            "seconds": seconds,
            "watt_hours": None if self.energy is None else round(self.energy, 6),
            "fits": self.fits,
            "refusal": self.refusal,
        }


def plan(workloads: Sequence[Workload], machine: Machine) -> Plan:
    """Plan the stages of a run. The widest one decides the strategy and chunk of all, and each must fit with them."""
    widest_one = widest(workloads)
    try:
        settled, refusal = check(widest_one, machine).workload, ""
    except CapacityError as error:
        settled, refusal = smallest(widest_one, machine).workload, str(error)
    stages = tuple(predict(settle(one, settled), machine) for one in workloads)
    if not refusal:
        refusal = next((_refused(one.workload, machine) for one in stages if not fits(one, machine)), "")
    free = widest_one.changed(strategy="auto", chunk=0, stage_layers=0, offload="none")
    others = tuple(best_of_each(options(free, machine), machine)) if widest_one.kind in TRAINING else ()
    return Plan(machine, stages, others, refusal)


def _refused(workload: Workload, machine: Machine) -> str:
    """The reason why a stage does not fit."""
    try:
        check(workload, machine)
    except CapacityError as error:
        return str(error)
    return ""


def settle(workload: Workload, settled: Workload) -> Workload:
    """A stage's workload with the strategy, chunk and place that were chosen for the run."""
    return workload.changed(**{name: getattr(settled, name) for name in MEMORY})


def smallest(workload: Workload, machine: Machine) -> Forecast:
    """The forecast with the least memory, to show what was refused. If all settings are given, it is the only one."""
    return min(options(workload, machine), key=lambda one: one.gpu or one.host)


def best_of_each(found: Sequence[Forecast], machine: Machine) -> list[Forecast]:
    """The fastest forecast for each strategy, stage and place, with those that fit first."""
    best: dict[tuple[Any, ...], Forecast] = {}
    for one in sorted(found, key=lambda one: (not fits(one, machine), one.seconds)):
        best.setdefault((one.workload.strategy, one.workload.stage_layers, one.workload.offload), one)
    return list(best.values())


def plan_lines(made: Plan) -> list[Line]:
    """The plan as sentences and (title, columns, rows) tables."""
    machine = made.machine
    rows = []
    for number, stage in enumerate(made.stages, start=1):
        run = stage.workload
        size = f"{run.rows * run.micro} x {run.length:,}"
        rows.append([str(number), size, _setting(run), gigabytes(stage.gpu or stage.host), gigabytes(stage.disk)])
        rows[-1] += [clock(stage.seconds), clock(stage.seconds * run.steps)]
    once = "an update" if made.stages[0].workload.kind in TRAINING else "a request"
    columns = ["stage", "rows x tokens", "memory setting", "memory", "disk", once, "all"]
    lines: list[Line] = [("", columns, rows)]
    peak = max(made.stages, key=lambda stage: stage.gpu or stage.host)
    total = sum(peak.parts.values())
    parts = [[name, gigabytes(size), f"{size / total:.0%}"] for name, size in peak.parts.items()]
    lines.append((f"\npeak, in phase '{peak.phase}'", ["part", "bytes", "share"], parts))
    lines.append(f"\nverdict: {VERDICTS[made.fits]} ({_room(made)})")
    lines += [made.refusal] if made.refusal else []
    if not math.isnan(made.seconds):
        lines.append(f"time: {_steps(made)}{made.power}; {made.sure}")
    if made.others:
        table = [
            [
                " ".join(f"{name}={value}" for name, value in chosen(one.workload).items()),
                gigabytes(one.gpu or one.host),
                gigabytes(one.disk),
                clock(one.seconds),
                VERDICTS[_judged(fits(one, machine), one, machine)],
            ]
            for one in made.others
        ]
        columns = ["--set memory.", "memory", "disk", "an update", "verdict"]
        lines.append(("\nother settings (put --set memory. before each)", columns, table))
    return lines


def _judged(suffices: bool, forecast: Forecast, machine: Machine) -> bool | None:
    """Whether a forecast fits, where what was seen `suffices`; None: the GPU was not seen."""
    return None if suffices and unseen(forecast.workload, machine) else suffices


def _room(made: Plan) -> str:
    """What the machine has, in words."""
    machine = made.machine
    room = f"{gigabytes(machine.usable)} of {gigabytes(machine.memory)} available may be used"
    if made.stages[0].workload.device == "cuda":
        card = "no GPU was seen here, so compare its memory with the forecast"
        if machine.gpu is not None:
            card = f"{gigabytes(int(machine.gpu * GPU_SAFETY))} of {gigabytes(machine.gpu)} of GPU memory may be used"
        host = max(stage.host for stage in made.stages)
        room = f"{card}; the host takes {gigabytes(host)}, where {room}"
    return f"{room}; {gigabytes(machine.disk)} of disk"


def _steps(made: Plan) -> str:
    """The times of a plan in words: those of the steps of a request, or of the whole run."""
    times = made.stages[0].times
    if made.stages[0].workload.kind in TRAINING:
        return f"about {clock(made.seconds)} in all"
    return ", ".join(f"{step} about {clock(seconds)}" for step, seconds in times.items())


def clock(seconds: float) -> str:
    """Format seconds for a reader.

    >>> clock(0.25), clock(90), clock(7200), clock(200_000)
    ('0.25 s', '90 s', '2.0 h', '2.3 days')
    """
    if math.isnan(seconds):
        return "-"
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 600:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min" if seconds < 7200 else "2.0 h"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86_400:.1f} days"


def _setting(workload: Workload) -> str:
    if workload.kind not in TRAINING:
        return "-"
    stage = f" of {workload.stage_layers} layers" if workload.stage_layers else ""
    chunk = f", chunk {workload.chunk:,}" if workload.chunk else ""
    place = f", on {workload.offload}" if workload.offload != "none" else ""
    return f"{workload.strategy}{stage}{chunk}{place}"
