"""Does reading over a cache give what reading at once gives?

Pieces of several sizes, single tokens among them, over the runtime's own cache and its own counting of positions. Where
frequencies depend on the length of the text, it is read across the trained length too: keys that were kept before it
must not meet queries that are rotated otherwise.
"""

import torch

from handscroll.doctor.finding import Absent, Check, Fault, Seen
from handscroll.doctor.probes import probe, room
from handscroll.doctor.runtime import Runtime, Trial, close, rows_apart

TOKENS = 72
LONGEST = 1400  # tokens that are read to see a window slide


def run(runtime: Runtime) -> Seen:
    facts = runtime.facts
    if facts is not None and facts.reads in ("both", "blanks"):
        raise Absent("it reads a text in both directions, so nothing is kept of it")
    windows = [window for window in facts.windows if window is not None] if facts is not None else []
    wanted = max(windows, default=0) + TOKENS
    count = room(runtime, wanted if windows and wanted <= LONGEST else TOKENS)
    if facts is not None and facts.by_length:
        count = min(count, facts.trained)
    ids = probe(runtime, count)
    half = count // 2
    pieces = (half, 1, 1, 3, count - half - 7, 1, 1)
    places, worst = _wrong(runtime, Trial((ids,)), pieces)
    faults = [] if not len(places) else [_off(int(places[0]), worst, half)]
    what = f"{count} tokens in {len(pieces)} pieces: {close(worst, 5 * runtime.rounding)}"
    if facts is not None and facts.by_length:
        size = 24
        shift = facts.trained - size // 2
        places, across = _wrong(runtime, Trial((probe(runtime, size),), shift=shift), (size // 2 - 2, 1, 1, 2, 8, 2))
        what += f"; across the trained length {facts.trained:,}: {close(across, 5 * runtime.rounding)}"
        if len(places):
            faults.append(_moving(facts.trained, across))
    return Seen(what, tuple(faults), numbers={"difference": worst if worst < float("inf") else None})


def _wrong(runtime: Runtime, how: Trial, pieces: tuple[int, ...]) -> tuple[torch.Tensor, float]:
    """The tokens (numbers) that read otherwise over a cache, and the largest difference."""
    (at_once,) = runtime.read(how)
    (kept,) = runtime.read(Trial(how.rows, how.shift, pieces=pieces))
    off = rows_apart(kept, at_once)
    return torch.nonzero(off > 5 * runtime.rounding).flatten(), float(off.max())


def _off(first: int, worst: float, half: int) -> Fault:
    begins = f"from the first token behind the first piece ({half})" if first == half else f"from token {first} on"
    return Fault(
        f"{begins}, logits over the cache differ from those of the whole text, by up to {worst:.2g} of their spread",
        "generated text is worse than scores of the same text promise: words repeat, or answers lose the thread after "
        "the prompt",
        "look at how positions are counted where the cache goes on (off by one?), at what the cache drops, and at its "
        "number format; generate with use_cache=False to see the difference",
    )


def _moving(trained: int, worst: float) -> Fault:
    return Fault(
        f"a text that grows past {trained:,} tokens over a cache differs from the same text read at once, by up to "
        f"{worst:.2g} of the spread: the frequencies change with the length, and the kept keys have the older rotation",
        "answers turn bad in the middle, when a conversation passes the trained length",
        "declare the length of the whole request before it is read (handscroll does), or lengthen the model with a "
        "scaling that does not depend on the length, such as YaRN",
    )


CHECK = Check("Does reading over a cache equal reading at once?", run)
