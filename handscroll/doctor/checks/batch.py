"""Does a text in a batch read as it reads alone?"""

from handscroll.doctor.finding import Check, Fault, Seen
from handscroll.doctor.probes import probe, room
from handscroll.doctor.runtime import Runtime, Trial, close, rows_apart

SIZES = (31, 17, 24, 5)


def run(runtime: Runtime) -> Seen:
    rows = tuple(probe(runtime, room(runtime, size) + number)[number:] for number, size in enumerate(SIZES))
    together = runtime.read(Trial(rows))
    worst, faults = 0.0, []
    for row, found in zip(rows, together, strict=True):
        off = float(rows_apart(found, runtime.read(Trial((row,)))[0]).max())
        worst = max(worst, off)
        if off > 5 * runtime.rounding and not faults:
            faults.append(_fault(len(row), off))
    return Seen(f"rows of {', '.join(map(str, SIZES))} tokens: {close(worst, 5 * runtime.rounding)}", tuple(faults))


def _fault(size: int, off: float) -> Fault:
    return Fault(
        f"a row of {size} tokens in a batch of longer ones differs from the same row alone, by {off:.2g} of its spread",
        "scores depend on the batch size and on what else is in the batch",
        "padding is attended to, or moves the positions: pass the attention mask, and positions counted by it",
    )


CHECK = Check("Do rows of different lengths in a batch read as they read alone?", run)
