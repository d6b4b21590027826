"""`extend`: lengthen a checkpoint's context by a named method or by the best measured one, with optional tuning."""

import copy
import dataclasses
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handscroll.base.errors import CapacityError, ConfigError
from handscroll.base.spec import ModelSpec, Positions
from handscroll.evaluate.perplexity import measure
from handscroll.evaluate.samples import Sample
from handscroll.extend.bakeoff import Goal, Outcome
from handscroll.extend.choice import Chooser, Chosen, Field, Wanted
from handscroll.extend.compare import Comparing, Comparison
from handscroll.extend.measuring import MEASURED
from handscroll.extend.methods import apply
from handscroll.extend.origin import origin
from handscroll.extend.remembered import Remembered
from handscroll.extend.search import Found, Search
from handscroll.extend.trials import Progress
from handscroll.extend.tune import TuneSettings, Tuning
from handscroll.lm import LM
from handscroll.models.model import Decoder, Model
from handscroll.nn.finite import check_weights
from handscroll.nn.positions.candidate import Candidate
from handscroll.plan.choose import gigabytes
from handscroll.plan.machine import spare
from handscroll.text.files import Paths
from handscroll.text.readers import Reader
from handscroll.train.loop import OnRecord

GUARD = 0.1  # nats that the loss of short text may rise


@dataclass(frozen=True)
class Extension:
    """A lengthened model, its candidate, and what was measured: the outcome of a bake-off, a comparison, a search."""

    lm: LM
    candidate: Candidate
    outcome: Outcome | None = None
    comparison: Comparison | None = None
    found: Found | None = None


def extend(lm: LM, to: int, method: str = "auto", **settings: Any) -> LM:
    """A lengthened copy of `lm` for texts of `to` tokens; the original stays unchanged.

    `settings` are the keyword arguments of `extension`: `text` (files for the measurement; without them the model
    writes a text itself), `guard`, `factors`, `search`, `compare`, `tune` and `folder`, `seed`.

    Raises:
        ConfigError: the method is unknown, or the target is not above the context.
        DataError: the text is too short. CapacityError: the tuning does not fit.
        KeyboardInterrupt: a signal stopped the tuning. The same call goes on from its folder.
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
    search: Search | None = None,
    compare: Comparing | None = None,
    progress: Progress | None = None,
    on_record: OnRecord | None = None,
    remember: Path | None = None,
    on_plan: Callable[[str], None] | None = None,
    into: Callable[[], LM] | None = None,
) -> Extension:
    """`extend` that also returns the chosen candidate and the tables of its choice.

    Args:
        text: files for the measurement; without them the model writes a text itself.
        reader: how the files are read.
        factors: `long_factor` and `short_factor` of method longrope.
        guard: nats per token by which the loss of short text may rise.
        measured: approximate number of tokens that each finalist reads.
        search: search the factors of longrope, which is then a candidate.
        compare: compare the methods with several seeds in place of the bake-off.
        remember: folder of what was measured before an interruption, which is not measured again.
        on_plan: receives the steps and the time of a measurement of more than a minute, before it begins.
        tune: settings of a short tuning afterwards, in the run folder `folder`.
        into: loads the same checkpoint in another dtype or number format, after the choice. That model is lengthened
            (and tuned) in place of a copy of `lm`. So quantised weights are measured as they lie, which is faster, and
            floats are saved.

    There are so many arguments because each is a separate decision of the user.
    """
    wide = method in ("auto", "all")
    _check_kind(lm.model.spec, wide or search is not None or text is not None or tune is not None)
    _check(guard, measured)
    if compare is not None and (text is None or not wide):
        raise ConfigError("a comparison needs text and several methods: give --text, with --method auto or all")
    if tune is not None and folder is None:
        raise ConfigError("tuning needs a run folder for its checkpoints: give folder=...")
    to, first = _whole(to), origin(lm)
    field = Field.of(lm.model.config, method, to, first, factors, search is not None)
    _check_memory(lm.model, to)
    check_weights(lm.model)
    tuning = None if tune is None or folder is None else Tuning.of(lm, to, tune, Path(folder))
    chosen = Chosen(field.entries[0]) if field.entries else None
    if (field.count > 1 and lm.model.spec.predicts) or text is not None or chosen is None:
        wanted = Wanted(Goal(to, first.trained, guard), measured, seed, search, compare)
        chooser = Chooser(lm, field, wanted, Remembered(remember, lm), progress, on_plan)
        chosen = chooser.choose(None if text is None else list((reader or Reader()).read(text)))
    copied = dataclasses.replace(lm, model=copy.deepcopy(lm.model)) if into is None else into()
    longer = _lengthened(copied, to, first, chosen)
    if tuning is not None:
        untuned = copy.deepcopy(longer.model)
        longer.provenance["tuned"] = tuning.run(longer, chosen.candidate.name, on_record)
        table = chosen.outcome or chosen.comparison
        if table is not None:
            _keep_the_better(longer, untuned, table.samples)
        if longer.provenance["tuned"].get("kept", True):
            longer.provenance["exact_to"] = 0  # the weights changed
    return Extension(longer, chosen.candidate, chosen.outcome, chosen.comparison, chosen.found)


def _lengthened(lm: LM, to: int, first: Positions, chosen: Chosen) -> LM:
    """`lm` with the chosen candidate, and where it comes from."""
    longer = dataclasses.replace(
        lm,
        tokenizer=lm.tokenizer.reaching(to),
        sentences=None if lm.sentences is None else lm.sentences.reaching(to),
    )
    table = chosen.outcome or chosen.comparison
    longer.provenance = {
        "made_by": "handscroll extend",
        "from": lm.source,
        "trained": first.trained,
        "before": first.remembered(),
        "to": to,
        "method": chosen.candidate.name,
        "exact_to": chosen.candidate.exact,
        "measured": None if table is None else table.record(),
    }
    if chosen.found is not None:
        longer.provenance["searched"] = chosen.found.record()
    apply(longer.model, chosen.candidate)
    longer.provenance["read_by"] = "handscroll only" if longer.model.spec.positions[0].only_ours else "any library"
    return longer


def _check_kind(spec: ModelSpec, measured: bool) -> None:
    """Refuse a measurement of a model that has no loss of one text."""
    if not measured or (spec.predicts and not spec.encoder):
        return
    methods = ", ".join(spec.positions[0].methods)
    if spec.encoder:
        raise ConfigError(
            "candidates are measured and tuned by the loss of one text, but an encoder-decoder needs a source as well: "
            f"name the method ({methods}), and tune with handscroll train (objective = 'span-corruption')"
        )
    raise ConfigError(
        "candidates are measured and tuned by the loss of tokens, and this model has no head for them: "
        f"name a method ({methods}), which is then taken as published"
    )


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
        raise ConfigError(f"measured = {measured!r}: the number of tokens that each finalist reads must be at least 1")


def _check_memory(model: Model, to: int) -> None:
    """Refuse a table of positions or distances that does not fit into this machine's free memory."""
    needs = model.spec.positions[0].making(to, model.spec.width)
    there, _ = spare()
    if needs > there:
        raise CapacityError(
            f"a table for {to:,} tokens needs {gigabytes(needs)} of memory to make, but only {gigabytes(there)} are "
            "free: give a smaller --to"
        )


def _keep_the_better(longer: LM, untuned: Decoder, samples: Sequence[Sample]) -> None:
    """Measure the tuned and the untuned model on the text of the choice, and keep the better one.

    The record holds both losses, and whether the tuning was kept.
    """
    tuned = longer.model
    loss = {}
    for name, longer.model in (("loss", tuned), ("loss_untuned", untuned)):
        loss[name] = measure(longer, samples, name).mean()
    longer.model = tuned if loss["loss"] <= loss["loss_untuned"] else untuned
    longer.provenance["tuned"] |= {**loss, "kept": longer.model is tuned}
