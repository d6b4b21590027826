"""Are the rotary frequencies those of the configuration?

The tables that attention uses are asked for one position; the arctangent gives the angles, which are held against the
frequencies that the configuration asks for, in float64. Where they differ, known mistakes are tried in turn.
"""

import numpy as np

from handscroll.doctor.angles import Numbers, suspects
from handscroll.doctor.facts import Facts, Turning
from handscroll.doctor.finding import Absent, Cannot, Check, Fault, Seen
from handscroll.doctor.runtime import Runtime

NEAR = 1e-4  # relative; float32 tables are right to 1e-6, frequencies rounded to 16 bits are off by 2e-4 and more


def run(runtime: Runtime) -> Seen:
    facts = facts_with_rotation(runtime)
    faults, worst = [], 0.0
    for turning in facts.turnings:
        for length in lengths(turning):
            found = np.abs(runtime.tables(turning, [1, length - 1], length).angles[0])
            wanted = turning.rope.frequencies(length)
            if len(found) != len(wanted):
                faults.append(_other_size(turning, len(found), len(wanted)))
                continue
            off = distance(found, wanted)
            worst = max(worst, off)
            if off > NEAR:
                faults.append(_named(turning, found, length, off))
    pairs = sum(len(turning.rope.frequencies()) for turning in facts.turnings)
    what = f"{pairs} frequencies of {len(facts.turnings)} kind(s) of layers differ by at most {worst:.1e}"
    return Seen(what, _once(faults), numbers={"largest_difference": _plain(worst)})


def facts_with_rotation(runtime: Runtime) -> Facts:
    """The facts of a model with rotary positions."""
    if runtime.facts is None:
        raise Cannot("its configuration is not known")
    if not runtime.facts.turnings:
        raise Absent("the model has no rotary positions")
    return runtime.facts


def lengths(turning: Turning) -> list[int]:
    """The lengths of text that meet different frequencies."""
    rope = turning.rope
    within = max(2, rope.original)
    return [within, max(within + 1, rope.reach)] if rope.by_length else [within]


def distance(found: Numbers, wanted: Numbers) -> float:
    """The largest relative difference; infinite where the sizes or the numbers do not allow one."""
    if found.shape != wanted.shape or not (np.isfinite(found).all() and np.isfinite(wanted).all()):
        return float("inf")
    return float(np.max(np.abs(found / np.where(wanted == 0, 1e-30, wanted) - 1.0)))


def _named(turning: Turning, found: Numbers, length: int, off: float) -> Fault:
    where = f" in layers of kind {turning.kind}" if turning.kind else ""
    says = next(
        (one.says for one in suspects(turning.rope, length) if distance(found, one.frequencies) <= NEAR),
        f"the frequencies are off by up to {100 * min(off, 99):.3g} %, and no known mistake explains it",
    )
    return Fault(
        f"for texts of {length:,} tokens{where}, {says}",
        "short texts read nearly as before; the further apart two tokens are, the worse, and beyond the trained length "
        "the model writes nonsense or the loss rises by nats",
        "reload the model so that the rotary module is built from this configuration (settings changed after loading "
        "do nothing), update the library, or correct rope_theta and rope_scaling in config.json",
    )


def _other_size(turning: Turning, found: int, wanted: int) -> Fault:
    return Fault(
        f"{2 * found} numbers of each head are rotated, and the configuration says {2 * wanted}",
        "the model writes nonsense at every length",
        "look at partial_rotary_factor and head_dim in config.json, and at the library that reads them",
    )


def _once(faults: list[Fault]) -> tuple[Fault, ...]:
    return tuple(dict.fromkeys(faults))


def _plain(value: float) -> float | None:
    return value if np.isfinite(value) else None


CHECK = Check("Are the rotary frequencies those of the configuration?", run)
