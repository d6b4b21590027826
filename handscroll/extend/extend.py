"""`extend`: lengthen a checkpoint's context by a named method or by the best measured one, with optional tuning."""

import copy
import dataclasses
import operator
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from handscroll.base.errors import CapacityError, ConfigError
from handscroll.base.workload import Workload
from handscroll.evaluate.perplexity import measure
from handscroll.evaluate.samples import windows
from handscroll.extend.bakeoff import Goal, Outcome, Progress, bake_off
from handscroll.extend.measuring import MEASURED, MINUTE, Measuring
from handscroll.extend.methods import apply, candidates
from handscroll.extend.origin import origin
from handscroll.extend.own_text import own_text
from handscroll.extend.remembered import Remembered
from handscroll.extend.tune import TuneSettings
from handscroll.extend.tune import tune as run_tuning
from handscroll.lm import LM
from handscroll.models.model import Decoder, Model
from handscroll.nn.finite import check_weights
from handscroll.nn.positions.candidate import Candidate
from handscroll.plan.calibration import GPU
from handscroll.plan.choose import gigabytes
from handscroll.plan.machine import spare, this_machine
from handscroll.text.files import Paths
from handscroll.text.readers import Document, Reader
from handscroll.train.loop import OnRecord

GUARD = 0.1  # nats that the loss of short text may rise


@dataclass(frozen=True)
class Extension:
    """A lengthened model, its candidate and the bake-off's outcome (None if the method was named)."""

    lm: LM
    candidate: Candidate
    outcome: Outcome | None


def extend(lm: LM, to: int, method: str = "auto", **settings: Any) -> LM:
    """A lengthened copy of `lm` for texts of `to` tokens; the original stays unchanged.

    `settings` are the keyword arguments of `extension`: `text` (files for the measurement; without them the model
    writes a text itself), `guard`, `factors`, `tune` and `folder`, `seed`.

    Raises:
        ConfigError: the method is unknown, or the target is not above the context.
        DataError: the text is too short.
    """
    return extension(lm, to, method, **settings).lm


def extension(  # noqa: PLR0913
    lm: LM,
    to: int,
    method: str = "auto",
    *,
    text: Paths | None = None,
    reader: Reader | None = None,
    factors: dict[str, Any] | None = None,
    guard: float = GUARD,
    tune: TuneSettings | None = None,
    folder: Path | None = None,
    seed: int = 0,
    measured: int = MEASURED,
    progress: Progress | None = None,
    on_record: OnRecord | None = None,
    remember: Path | None = None,
    on_plan: Callable[[str], None] | None = None,
) -> Extension:
    """`extend` that also returns the chosen candidate and the bake-off's table.

    Args:
        text: files for the measurement; without them the model writes a text itself.
        reader: how the files are read.
        factors: `long_factor` and `short_factor` of method longrope.
        guard: nats per token by which the loss of short text may rise.
        measured: approximate number of tokens in the final round of the bake-off.
        remember: folder of what was measured before an interruption, which is not measured again.
        on_plan: receives the steps and the time of a measurement of more than a minute, before it begins.
        tune: settings of a short tuning afterwards, in the run folder `folder`.

    There are more than seven arguments because each is a separate decision of the user.
    """
    if lm.model.spec.encoder and (method in ("auto", "all") or text is not None or tune is not None):
        methods = ", ".join(lm.model.spec.positions[0].methods)
        raise ConfigError(
            "candidates are measured and tuned by the loss of one text, but an encoder-decoder needs a source as well: "
            f"name the method ({methods}), and tune with handscroll train (objective = 'span-corruption')"
        )
    if not lm.model.spec.predicts and (method in ("auto", "all") or text is not None or tune is not None):
        methods = ", ".join(lm.model.spec.positions[0].methods)
        raise ConfigError(
            "candidates are measured and tuned by the loss of tokens, and this model has no head for them: "
            f"name a method ({methods}), which is then taken as published"
        )
    _check(guard, measured)
    to, first = _whole(to), origin(lm)
    entries = candidates(lm.model, method, to, factors, first)
    _check_memory(lm.model, to)
    check_weights(lm.model)
    outcome = None
    if (len(entries) > 1 and lm.model.spec.predicts) or text is not None:
        documents = None if text is None else (reader or Reader()).read(text)
        memory, count = Remembered(remember, lm), max(1, measured // to)
        written = 0 if text is not None else to * count
        _tell(lm, Measuring.of(entries, to, first.trained, count, written), on_plan)
        documents = _own(lm, to * count, seed, progress, memory) if documents is None else documents
        samples = windows(documents, lm.tokenizer, to, count, seed)
        outcome = bake_off(lm, entries, samples, Goal(to, first.trained, guard), progress, memory)
        chosen = outcome.winner.candidate
    else:
        chosen = entries[0]
    longer = dataclasses.replace(
        lm,
        model=copy.deepcopy(lm.model),
        tokenizer=lm.tokenizer.reaching(to),
        sentences=None if lm.sentences is None else lm.sentences.reaching(to),
    )
    longer.provenance = {
        "made_by": "handscroll extend",
        "from": lm.source,
        "trained": first.trained,
        "before": first.remembered(),
        "to": to,
        "method": chosen.name,
        "exact_to": chosen.exact,
        "measured": None if outcome is None else outcome.record(),
    }
    apply(longer.model, chosen)
    longer.provenance["read_by"] = "handscroll only" if longer.model.spec.positions[0].only_ours else "any library"
    if tune is not None:
        if folder is None:
            raise ConfigError("tuning needs a run folder for its checkpoints: give folder=...")
        untuned = copy.deepcopy(longer.model)
        longer.provenance["tuned"] = run_tuning(longer, to, tune, Path(folder), on_record)
        if outcome is not None:
            _keep_the_better(longer, untuned, outcome)
        if longer.provenance["tuned"].get("kept", True):
            longer.provenance["exact_to"] = 0  # the weights changed
    return Extension(longer, chosen, outcome)


def _tell(lm: LM, measuring: Measuring, on_plan: Callable[[str], None] | None) -> None:
    """Tell `on_plan` about a measurement of more than a minute."""
    if on_plan is None or lm.model.spec.encoder or lm.model.spec.recurrent:
        return
    device, wide = lm.model.device, lm.model.dtype == torch.float32
    precision = "float32" if wide else "bfloat16"
    workload = Workload(kind="generate", spec=lm.model.spec, length=measuring.target, precision=precision)
    machine = this_machine(threads=torch.get_num_threads())
    seconds = measuring.seconds(workload, GPU if device.type == "cuda" else machine.calibration)
    if seconds > MINUTE:
        on_plan(measuring.words(seconds))


def _whole(to: int) -> int:
    try:
        return operator.index(to)
    except TypeError:
        raise ConfigError(f"to = {to!r}: the new context must be a whole number of tokens") from None


def _check(guard: float, measured: int) -> None:
    if not (isinstance(guard, (int, float)) and guard >= 0):  # this form also refuses NaN
        raise ConfigError(
            f"guard = {guard!r}: the rise that is allowed for the loss of short text, in nats per token, must be a "
            "number of at least 0"
        )
    if not (isinstance(measured, int) and measured >= 1):
        raise ConfigError(
            f"measured = {measured!r}: the number of tokens in the final round must be a whole number of at least 1"
        )


def _check_memory(model: Model, to: int) -> None:
    """Refuse a table of positions or distances that does not fit into this machine's free memory."""
    needs = model.spec.positions[0].making(to, model.spec.width)
    there, _ = spare()
    if needs > there:
        raise CapacityError(
            f"a table for {to:,} tokens needs {gigabytes(needs)} of memory to make, but only {gigabytes(there)} are "
            "free: give a smaller --to"
        )


def _keep_the_better(longer: LM, untuned: Decoder, outcome: Outcome) -> None:
    """Measure the tuned and the untuned model on the bake-off's text, and keep the better one.

    The record holds both losses, and whether the tuning was kept.
    """
    tuned = longer.model
    loss = {}
    for name, longer.model in (("loss", tuned), ("loss_untuned", untuned)):
        loss[name] = measure(longer, outcome.samples, name).mean()
    longer.model = tuned if loss["loss"] <= loss["loss_untuned"] else untuned
    longer.provenance["tuned"] |= {**loss, "kept": longer.model is tuned}


def _own(lm: LM, tokens: int, seed: int, progress: Progress | None, memory: Remembered) -> list[Document]:
    """A text for the measurement that the model writes itself."""
    if lm.model.spec.both_ways:
        raise ConfigError(
            "an encoder cannot write a text for the measurement itself: give --text FILES, or name a --method"
        )
    if progress is not None:
        progress(f"no --text: the model writes {tokens} tokens itself for the measurement", 0, 0)

    def written() -> dict[str, str]:
        document = own_text(lm, tokens, seed)
        return {"text": document.text, "source": document.source}

    found = memory.value(["own text", tokens, seed], written)
    return [Document(found["text"], found["source"])]
