"""Chooses memory settings: which strategy, chunk and place fit, which is fastest, and the refusal if none fits."""

from collections.abc import Mapping, Sequence

from handscroll.base.errors import CapacityError, ConfigError
from handscroll.base.portions import EDGE
from handscroll.base.workload import CHUNKED, MEMORY, Workload
from handscroll.plan.forecast import Forecast, beside, disk_bytes, predict
from handscroll.plan.machine import GPU_SAFETY, SAFETY, Machine

CHUNKS = (4096, 2048, 1024, 512, 256)


def options(workload: Workload, machine: Machine) -> list[Forecast]:
    """Forecasts for every strategy, chunk, stage and place that the workload's own settings leave open.

    Given settings are kept: with strategy "staged", for example, only its chunk and place vary. The forecasts are
    sorted by time, then by memory. For generate and serve there is only one, for the workload itself.
    """
    if workload.kind in ("generate", "serve"):
        if not workload.spec.cached:
            raise ConfigError(f"an encoder generates no text: '{workload.kind}' is for causal models")
        return [predict(workload, machine)]
    strategies: list[str] = ["plain", "checkpoint", *CHUNKED] if workload.strategy == "auto" else [workload.strategy]
    if workload.strategy == "auto" and (workload.chunk or workload.offload != "none"):
        strategies = list(CHUNKED)
    if workload.spec.both_ways or workload.spec.encoder:
        strategies = [strategy for strategy in strategies if strategy not in ("chunk-outer", "staged")]
        if not strategies:
            raise ConfigError(
                f"strategy '{workload.strategy}' needs a causal mask, but this model's tokens see later ones: "
                "choose memory.strategy = 'layer-outer', 'checkpoint', 'plain' or 'auto'"
            )
    found: dict[Workload, Forecast] = {}
    for strategy in strategies:
        for stage in _stages(workload, strategy):
            for offload in _places(workload, strategy):
                for chunk in _chunks(workload, strategy):
                    changes = {"strategy": strategy, "stage_layers": stage, "offload": offload, "chunk": chunk}
                    one = workload.changed(**changes)
                    found[one] = predict(one, machine)
    # On a tie the simpler strategy comes first: chunk-outer in one chunk computes the same as plain.
    return sorted(found.values(), key=lambda one: (one.seconds, strategies.index(one.workload.strategy), one.host))


def fits(forecast: Forecast, machine: Machine) -> bool:
    """Whether memory and disk suffice, including the safety margin. A GPU that was not seen is not judged."""
    if _overfull(forecast, machine):
        return False
    return forecast.host <= machine.usable and forecast.disk <= machine.disk


def unseen(workload: Workload, machine: Machine) -> bool:
    """Whether the run needs a GPU, and none was seen."""
    return workload.device == "cuda" and machine.gpu is None


def _overfull(forecast: Forecast, machine: Machine) -> bool:
    """Whether a GPU that was seen cannot hold what is planned on it."""
    return machine.gpu is not None and forecast.gpu > machine.gpu * GPU_SAFETY


def resolve(workload: Workload, machine: Machine) -> Workload:
    """Choose the strategy and chunk of a workload: the fastest that fits. Given settings are kept.

    The result is deterministic for the same machine numbers. Offloading is chosen only if nothing else fits.

    Raises:
        CapacityError: nothing fits. The message says what would.
    """
    found = options(workload, machine)
    kept = [forecast for forecast in found if fits(forecast, machine)]
    inside = [forecast for forecast in kept if forecast.workload.offload == workload.offload] or kept
    if not inside:
        raise CapacityError(_refusal(workload, machine))
    return inside[0].workload


def check(workload: Workload, machine: Machine) -> Forecast:
    """The forecast of a run, which must fit.

    Raises:
        CapacityError: it does not fit. The message names what is needed, what is available, and a setting that fits.
    """
    if workload.kind in ("train", "extend") and (
        workload.strategy == "auto" or (workload.strategy in CHUNKED and not workload.chunk)
    ):
        workload = resolve(workload, machine)
    (forecast,) = options(workload, machine)
    if not fits(forecast, machine):
        raise CapacityError(_refusal(workload, machine, forecast))
    return forecast


def afford(workload: Workload, free: int, disk: int, others: Mapping[str, Workload]) -> None:
    """Refuse a generation request that does not fit in memory beside the loaded model.

    `free`: free bytes of memory. `disk`: free bytes of the disk with the temporary files. `others`: the same request
    with alternative settings, keyed by the option that selects them, preferred ones first. The disk is checked for
    these only, because the request itself may name another folder and reserves its space before it writes.

    Raises:
        CapacityError: it does not fit. The message names what is needed, what is available, and what would fit.
    """
    room = int(free * SAFETY)

    def fit(one: Workload) -> bool:
        return sum(beside(one).values()) <= room

    if fit(workload):
        return
    parts = beside(workload)
    total = sum(parts.values())
    message = (
        f"{workload.length:,} tokens of prompt{f' and {workload.new:,} new ones' if workload.new else ''} would take "
        f"{gigabytes(total)} of memory beside the model, {gigabytes(parts['cache'])} of it for keys and values; "
        f"{gigabytes(room)} of the {gigabytes(free)} free may be planned"
    )
    fitting = [
        f"{words} ({gigabytes(sum(beside(one).values()))}"
        + (f", and {gigabytes(disk_bytes(one))} of disk)" if disk_bytes(one) else ")")
        for words, one in others.items()
        if fit(one) and disk_bytes(one) <= disk
    ]
    low, high = 0, workload.length
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fit(workload.changed(length=middle)) else (low, middle)
    if low:
        after = f" after the {workload.past:,} that were read before" if workload.past else ""
        fitting.append(f"a prompt of up to {low:,} tokens{after}")
    otherwise = "Ask for fewer new tokens" if workload.new else "Free some memory, or use a smaller model"
    raise CapacityError(f"{message}. " + (f"This fits: {'; '.join(fitting)}" if fitting else otherwise))


def afford_pool(workload: Workload, pool: int, free: int) -> None:
    """Refuse an engine that does not fit in memory beside the loaded model.

    `workload` is one step of the engine, and its cache is everything that the engine keeps. `pool`: the bytes of the
    cache for keys and values, which the caller chooses. `free`: free bytes of memory.

    Raises:
        CapacityError: it does not fit. The message names what is needed, what is available, and how much would fit.
    """
    room, total = int(free * SAFETY), sum(beside(workload).values())
    if total <= room:
        return
    most = room - (total - pool)
    fits = f"give it at most {gigabytes(most)}" if most > 0 else "no memory is left for them; use a smaller model"
    raise CapacityError(
        f"{gigabytes(pool)} of keys and values for an engine would take {gigabytes(total)} of memory beside the model; "
        f"{gigabytes(room)} of the {gigabytes(free)} free may be planned: {fits}"
    )


def longest(workload: Workload, machine: Machine) -> int:
    """The longest row (a multiple of 64) that fits with some setting that is left open. 0: no row fits."""
    low, high = 0, 1 << 24
    while high - low > EDGE:
        middle = (low + high) // 2 // EDGE * EDGE
        there = workload.changed(length=middle)
        fit = any(fits(forecast, machine) for forecast in options(there, machine))
        low, high = (middle, high) if fit else (low, middle)
    return low


def chosen(workload: Workload) -> dict[str, str | int]:
    """The settings of the recipe's table `memory` that select a workload's strategy, stage, chunk and place."""
    values = {name: getattr(workload, name) for name in MEMORY}
    return {name: value for name, value in values.items() if value not in (0, "none")}


def settings(workload: Workload) -> str:
    """`chosen` as options of the command line."""
    return " ".join(f"--set memory.{name}={value}" for name, value in chosen(workload).items())


def gigabytes(size: int) -> str:
    """Format bytes in decimal units: as "1,234 MB" below ten gigabytes, in GB above."""
    return f"{size / 1e6:,.0f} MB" if size < 1e10 else f"{size / 1e9:,.1f} GB"


def _refusal(workload: Workload, machine: Machine, forecast: Forecast | None = None) -> str:
    """The message of a refusal: what was asked for, what is available, and what would fit."""
    free = (
        workload.changed(strategy="auto", chunk=0, stage_layers=0, offload="none")
        if workload.strategy != "auto"
        else workload
    )
    others = options(free, machine)
    needed = forecast or min(others, key=lambda one: one.host)
    what = f"{workload.rows} x {workload.length:,} tokens on strategy '{needed.workload.strategy}'"
    if workload.kind in ("generate", "serve"):
        what = f"{workload.rows} rows of {workload.length + workload.new:,} tokens"
    message = f"{what} would take {_needs(needed, machine)}"
    fitting = next((one for one in sorted(others, key=_offloaded) if fits(one, machine)), None)
    if fitting is not None and workload.kind in ("train", "extend"):
        change = settings(fitting.workload)
        return f"{message}. This fits ({gigabytes(fitting.gpu or fitting.host)}): {change}"
    most = longest(free, machine)
    if most:
        return f"{message}, and no memory strategy fits. Rows of up to {most:,} tokens would: lower the length"
    return f"{message}, and no length fits: use a smaller model, fewer rows, or a machine with more memory"


def _needs(forecast: Forecast, machine: Machine) -> str:
    if _overfull(forecast, machine):
        return f"{gigabytes(forecast.gpu)} of GPU memory, the GPU has {gigabytes(machine.gpu or 0)}"
    if forecast.host > machine.usable:
        share = f"{gigabytes(machine.usable)} of the {gigabytes(machine.memory)} available may be planned"
        return f"{gigabytes(forecast.host)} of memory, {share}"
    return f"{gigabytes(forecast.disk)} of disk, {gigabytes(machine.disk)} are free"


def _offloaded(forecast: Forecast) -> tuple[bool, float]:
    return forecast.workload.offload != "none", forecast.seconds


def _stages(workload: Workload, strategy: str) -> list[int]:
    if strategy != "staged":
        return [0]
    if workload.stage_layers:
        return [workload.stage_layers]
    return [size for size in (2, 4, 8, 16, 32) if size < len(workload.spec.layers)]


def _places(workload: Workload, strategy: str) -> list[str]:
    if strategy not in CHUNKED or workload.offload != "none":
        return [workload.offload if strategy in CHUNKED else "none"]
    if workload.strategy != "auto":
        return ["none"]
    return ["none", "disk"] if workload.device == "cpu" else ["none", "host", "disk"]


def _chunks(workload: Workload, strategy: str) -> list[int]:
    """The chunks to compare: the given one, or powers of two that are shorter than the row."""
    if strategy not in CHUNKED:
        return [0]
    if workload.chunk:
        return [workload.chunk]
    whole = -(-workload.length // EDGE) * EDGE
    return [size for size in CHUNKS if size < whole] or [min(CHUNKS[-1], whole)]


def widest(workloads: Sequence[Workload]) -> Workload:
    """The stage of a run that needs most: by its tokens, then by length. It decides the settings of all stages."""
    return max(workloads, key=lambda one: (one.rows * one.length, one.length, one.micro > 1))
