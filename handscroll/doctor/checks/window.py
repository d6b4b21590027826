"""Do layers see as far as the configuration says, and no further?

The input of one layer is changed at its first token, and the output of that layer is looked at: within the window it
must change, behind it not. So a window that is ignored and one that is too small are told apart without any weights.
"""

import torch

from handscroll.doctor.facts import Facts
from handscroll.doctor.finding import Absent, Cannot, Check, Fault, Seen
from handscroll.doctor.probes import random_ids, room
from handscroll.doctor.runtime import Runtime

MOST = 4200  # tokens that are read to see the end of a window
SOME = 72  # tokens in which a layer without a window must see the first


def run(runtime: Runtime) -> Seen:
    facts = runtime.facts
    if facts is None:
        raise Cannot("its configuration is not known")
    if facts.spec is not None and facts.spec.recurrent:
        raise Absent("a recurrent model has no windows")
    faults, told, notes = [], [], []
    for window in sorted(set(facts.windows), key=lambda one: one or 1 << 40):
        layer = facts.windows.index(window)
        if window is not None and window + 8 > MOST:
            notes.append(f"a window of {window:,} tokens is longer than the {MOST:,} that are read to see it end")
            continue
        fault, said = _layer(runtime, facts, layer, window)
        told.append(said)
        faults += [fault] if fault is not None else []
    if not told:
        raise Cannot("; ".join(notes))
    return Seen("; ".join(told), tuple(faults), tuple(notes))


def _layer(runtime: Runtime, facts: Facts, layer: int, window: int | None) -> tuple[Fault | None, str]:
    count = room(runtime, SOME if window is None else window + 8)
    changed = runtime.felt(random_ids(runtime, count), layer, 0) > 0
    last = int(torch.nonzero(changed).max()) if bool(changed.any()) else -1
    if window is None:
        if last == count - 1:
            return None, f"layer {layer} sees all of {count} tokens"
        return _short(layer, last + 1, "the configuration says that it sees everything"), f"layer {layer} ends early"
    if last >= window:
        return _ignored(layer, window, last + 1), f"layer {layer} sees past its window"
    if last < min(window, count) - 1:
        return _short(layer, last + 1, f"its window is {window:,}"), f"layer {layer} ends early"
    return None, f"layer {layer} sees {window:,} tokens"


def _ignored(layer: int, window: int, seen: int) -> Fault:
    return Fault(
        f"layer {layer} sees {seen:,} tokens back and more, although its window is {window:,}: the window is ignored",
        f"texts of up to {window:,} tokens are fine; longer ones are read as the model was never trained to, and take "
        "more memory than planned",
        "use an attention implementation that knows windows (eager, sdpa, flash_attention_2), and look at "
        "sliding_window, use_sliding_window and layer_types in config.json",
    )


def _short(layer: int, seen: int, says: str) -> Fault:
    return Fault(
        f"layer {layer} sees {seen:,} tokens back, and {says}",
        "what stands further back is forgotten",
        "look at sliding_window and layer_types in config.json, and at limits of the runtime",
    )


CHECK = Check("Do layers see as far as their windows say, and no further?", run)
