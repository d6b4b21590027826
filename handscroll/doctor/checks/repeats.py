"""Does a passage that comes again and again stay as easy? A look from outside that needs log-probabilities alone.

A model that has read a passage once reads it again with less surprise, or at least with no more. Where positions go
wrong along the text, the loss of a later copy is higher than that of the first one.
"""

import math

from handscroll.doctor.finding import Absent, Cannot, Check, Fault, Seen
from handscroll.doctor.probes import probe
from handscroll.doctor.runtime import Ids, Runtime

COPIES, UNIT = 6, 120
RISE = 1.0  # nats a token; a healthy model near the end of its context rose by 0.3


def run(runtime: Runtime) -> Seen:
    facts = runtime.facts
    if facts is not None and facts.reads != "forward":
        raise Absent("it does not predict a text token by token")
    if facts is not None and facts.spec is not None and not facts.spec.predicts:
        raise Absent("it predicts no tokens")
    context = facts.context if facts is not None and facts.context else COPIES * UNIT
    unit = min(UNIT, context // COPIES)
    if unit < 8:
        raise Cannot(f"its context of {context} tokens holds no {COPIES} copies of anything")
    unit, losses = _measured(runtime, unit)
    size = runtime.words.size if runtime.words is not None else facts.vocab if facts is not None else 0
    if losses[0] > 0.75 * math.log(max(size, 2)):
        raise Cannot("the model does not predict this text better than chance, so nothing could become harder")
    worst = max(range(1, COPIES), key=lambda copy: losses[copy])
    rise = losses[worst] - losses[0]
    what = (
        f"{COPIES} copies of {unit} tokens: {losses[0]:.2f} nats a token in the first, up to {losses[worst]:.2f} later"
    )
    numbers = {"nats_by_copy": [round(loss, 4) for loss in losses]}
    if rise <= RISE:
        return Seen(what, numbers=numbers)
    fault = Fault(
        f"copy {worst + 1} of the same passage (from token {worst * unit:,} on) is {rise:.2f} nats a token harder than "
        "the first one",
        "the model loses its way along a text; long prompts are answered with repeated or meaningless words",
        "positions go wrong on the way: look at the checks frequencies and precision, or at the window of the server",
    )
    return Seen(what, (fault,), numbers=numbers)


def _measured(runtime: Runtime, unit: int) -> tuple[int, list[float]]:
    """The length of a copy and the losses; a server that refuses the whole may take shorter copies."""
    while True:
        try:
            return unit, _losses(runtime, unit)
        except Cannot:
            if runtime.facts is not None or unit // 2 < 8:
                raise
            unit //= 2


def _losses(runtime: Runtime, unit: int) -> list[float]:
    """The mean loss (nats a token) of each copy, its first token left out."""
    ids = _copies(runtime, unit)
    losses = (-runtime.logprobs(ids)).tolist()
    return [sum(losses[copy * unit : (copy + 1) * unit - 1]) / (unit - 1) for copy in range(COPIES)]


def _copies(runtime: Runtime, unit: int) -> Ids:
    if runtime.facts is None and runtime.words is None:
        raise Cannot("log-probabilities belong to tokens, and there is no tokenizer: name the model's folder too")
    once = probe(runtime, unit + 1)[1:]
    return once * COPIES


CHECK = Check("Does a passage that comes again and again stay as easy?", run)
