"""Are positions told apart at every distance, or rounded, wrapped or cut?

The tables at high positions are held against the angle in float64 (position times the frequency that the runtime itself
uses, so that a wrong frequency is not reported twice). bfloat16 positions are off by a whole token from 257 on.
"""

import numpy as np

from handscroll.doctor.checks.frequencies import NEAR, distance, facts_with_rotation
from handscroll.doctor.facts import Turning
from handscroll.doctor.finding import Cannot, Check, Fault, Seen
from handscroll.doctor.runtime import Runtime

PLACES = (1, 2, 3, 31, 255, 257, 1023, 1025, 2047, 2049, 4097, 8193, 16_385, 29_001, 32_771, 65_537, 131_071)
FLOAT32 = 2.0**-20  # radians a position that an angle in float32 may be off, with a margin


def run(runtime: Runtime) -> Seen:
    faults, worst = [], 0.0
    for turning in facts_with_rotation(runtime).turnings:
        length = max(4, turning.rope.original if turning.rope.by_length else turning.rope.reach)
        places = [place for place in PLACES if place < length - 1] + [length - 1]
        found = runtime.tables(turning, places, length)
        frequencies = _used(turning, np.abs(found.angles[0]), length, runtime)
        angles = np.outer(places, frequencies)
        factor = found.factor
        off = np.hypot(found.cosine / factor - np.cos(angles), np.abs(found.sine / factor) - np.abs(np.sin(angles)))
        allowed = 1e-3 + FLOAT32 * np.asarray(places, dtype=np.float64)
        worst = max(worst, float(off.max()))
        wrong = np.nonzero(off.max(axis=1) > allowed)[0]
        if len(wrong):
            faults.append(_fault(places, wrong.tolist(), off, turning))
    return Seen(f"angles are right to {worst:.1e} radians up to the stated context", tuple(faults))


def _used(turning: Turning, found: np.ndarray, length: int, runtime: Runtime) -> np.ndarray:
    """The frequencies in float64: those of the configuration where the runtime has them, else its own."""
    wanted = turning.rope.frequencies(length)
    if found.shape == wanted.shape and distance(found, wanted) <= NEAR:
        return wanted
    if not np.isfinite(found).all():
        raise Cannot("its tables hold no numbers")
    return found


def _fault(places: list[int], wrong: list[int], off: np.ndarray, turning: Turning) -> Fault:
    first = places[wrong[0]]
    kind = f" in layers of kind {turning.kind}" if turning.kind else ""
    says = f"the angles{kind} are wrong from position {first:,} on, by up to {off[wrong].max():.2f} radians"
    if first <= 257 and places[wrong[-1]] > 256:
        says += " (as positions in bfloat16 are, which has no odd number above 256)"
    elif len(wrong) == len([place for place in places if place >= first]):
        says += " (as tables are that end there and repeat or hold their last row)"
    return Fault(
        says,
        "texts are fine up to that place and turn to gibberish behind it; neighbours cannot be told apart",
        "compute positions and angles in float32 (or float64 beyond 16,384), not in the dtype of the weights, and make "
        "the tables as long as the context",
    )


CHECK = Check("Are positions exact at every distance (float32, no table that ends)?", run)
