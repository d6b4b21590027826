"""Does the same passage read the same wherever it stands?

Where only distances count (rotary positions, ALiBi, relative buckets), a passage whose positions are all shifted must
give equal logits. Where positions are absolute (a learned table), the loss of a trained model must not drift.
"""

import math

import torch

from handscroll.doctor.finding import Absent, Cannot, Check, Fault, Seen
from handscroll.doctor.probes import probe, spelled, trained
from handscroll.doctor.runtime import Runtime, Trial, apart

TOKENS = 48
DRIFT = 1.0  # nats a token that the loss may rise with the place in a learned table


def run(runtime: Runtime) -> Seen:
    facts = runtime.facts
    if facts is None:
        raise Cannot("its configuration is not known; the check 'repeats' looks at the same from outside")
    if facts.spec is not None and facts.spec.recurrent:
        raise Absent("a recurrent model has no positions")
    return _shifted(runtime) if facts.relative else _drifting(runtime)


def _shifted(runtime: Runtime) -> Seen:
    facts = runtime.facts
    assert facts is not None
    ids = probe(runtime, TOKENS)
    most = (facts.trained if facts.by_length else facts.context) - len(ids)
    shifts = [shift for shift in (1, 7, 64, 257, 1000, 4099, 16_001, 30_001, 120_000) if shift < most] + [max(most, 1)]
    length = facts.trained if facts.by_length else max(shifts) + len(ids)
    (at_start,) = runtime.read(Trial((ids,), length=length))
    found = {shift: apart(runtime.read(Trial((ids,), shift=shift, length=length))[0], at_start) for shift in shifts}
    allowed = {shift: 3 * runtime.rounding + shift * 2.0**-20 for shift in shifts}
    wrong = [shift for shift in shifts if found[shift] > allowed[shift]]
    numbers = {"by_offset": {str(shift): value for shift, value in found.items() if math.isfinite(value)}}
    what = f"{len(ids)} tokens at {len(shifts)} offsets up to {max(shifts):,}: equal to {max(found.values()):.1e}"
    if not wrong:
        return Seen(what, numbers=numbers)
    fault = Fault(
        f"the same {len(ids)} tokens give other logits at position {wrong[0]:,} (by {found[wrong[0]]:.2g} of their "
        "spread), although only distances count in this model",
        "answers depend on where in the prompt a passage stands; usually they get worse towards the end",
        "compute positions in float32, count them alike in prompt and cache, and look for tables that end",
    )
    return Seen(what, (fault,), numbers=numbers)


def _drifting(runtime: Runtime) -> Seen:
    facts, words = runtime.facts, runtime.words
    assert facts is not None
    rows = facts.rows
    if rows is None or facts.reads != "forward" or words is None or not trained(runtime):
        raise Cannot("positions are absolute and the model does not predict prose, so no loss could drift")
    ids = tuple(spelled(words, min(TOKENS, rows // 2)))
    shifts = sorted({0, *(rows * share // 4 for share in (1, 2, 3)), rows - len(ids)})
    wanted, losses = torch.tensor(ids[1:]), {}
    for shift in shifts:
        (logits,) = runtime.read(Trial((ids,), shift=shift))
        losses[shift] = float(torch.nn.functional.cross_entropy(logits[:-1].double(), wanted))
    worst = max(losses, key=lambda shift: losses[shift])
    what = f"{len(ids)} tokens at {len(shifts)} offsets: {min(losses.values()):.2f} to {losses[worst]:.2f} nats a token"
    numbers = {"nats_by_offset": {str(shift): round(loss, 4) for shift, loss in losses.items()}}
    if losses[worst] <= losses[0] + DRIFT:
        return Seen(what, numbers=numbers)
    fault = Fault(
        f"the same {len(ids)} tokens lose {losses[worst] - losses[0]:.2f} nats more at position {worst:,} than at 0",
        "the model gets worse along a text, although nothing in it becomes harder",
        "rows of the table of positions were never trained or were lengthened badly: use the trained length "
        f"({facts.trained:,}), or lengthen the table with tuning (handscroll extend)",
    )
    return Seen(what, (fault,), numbers=numbers)


CHECK = Check("Does the same passage read the same at every offset?", run)
