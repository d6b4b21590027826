"""Chooses a candidate by measurement: a bake-off, a comparison with several seeds, a search before either of them."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from handscroll.base.errors import ConfigError, DataError
from handscroll.base.spec import ModelSpec, Positions
from handscroll.cache.table import DEFAULT
from handscroll.evaluate.needle import planned_tokens
from handscroll.evaluate.samples import Sample, windows
from handscroll.extend.bakeoff import Goal, Outcome, Text, bake_off
from handscroll.extend.compare import Comparing, Comparison, Contest, needle_cells
from handscroll.extend.measuring import LEAPS, MEASURED, MINUTE, Measuring, Round, can_leap, comparing, reach
from handscroll.extend.methods import of_config
from handscroll.extend.own_text import own_text
from handscroll.extend.remembered import Remembered
from handscroll.extend.search import SEEDS, Found, Search, Species, search
from handscroll.extend.trials import Progress, Trials
from handscroll.extend.windows import NEAR, leaping_size, more_short
from handscroll.generate.budget import Demand, weights_of
from handscroll.lm import LM
from handscroll.nn.positions.candidate import Candidate
from handscroll.plan.calibration import GPU
from handscroll.plan.machine import this_machine
from handscroll.text.readers import Document


@dataclass(frozen=True)
class Wanted:
    """How a candidate is chosen: `goal`, the tokens that each finalist reads, and the work besides."""

    goal: Goal
    measured: int = MEASURED
    seed: int = 0
    search: Search | None = None
    compare: Comparing | None = None


@dataclass(frozen=True)
class Chosen:
    """The candidate, and the tables of what was measured."""

    candidate: Candidate
    outcome: Outcome | None = None
    comparison: Comparison | None = None
    found: Found | None = None


@dataclass(frozen=True)
class Field:
    """The candidates of one choice: `entries` are measured; a search begins from `seeds`, at the positions `first`."""

    entries: tuple[Candidate, ...]
    seeds: tuple[Candidate, ...] = ()
    first: Any = None

    @classmethod
    def of(cls, config: Any, method: str, to: int, first: Positions, factors: Any = None, searched: bool = False):
        """The candidates of a model's configuration.

        Raises:
            ConfigError: the method is unknown or does not fit; there is nothing to search.
        """
        if not searched:
            return cls(tuple(of_config(config, method, to, factors, first)))
        own = config.spec.positions[0]
        if "longrope" not in own.methods or method not in ("longrope", "auto", "all") or factors is not None:
            raise ConfigError(
                "--search finds the factors of LongRoPE, for rotary positions: give it with --method longrope, auto or "
                f"all, without --factors (here: {own.words}, --method {method})"
            )
        if own.scaling.name != "none" or own.remembered() != first.remembered():
            raise ConfigError(
                f"the checkpoint is scaled already ({own.scaling.name}); search from the checkpoint that it was made of"
            )
        seeds = of_config(config, "auto", to, None, first)
        return cls(
            () if method == "longrope" else tuple(of_config(config, method, to, None, first)), tuple(seeds), first
        )

    @property
    def leaping(self) -> bool:
        """Whether all can be judged on leaping windows.

        Where parts of the keys are read at distances of their own, leaps confuse them: Self-Extend had 3.49 nats on
        leaping windows of the starter, and 2.69 on real ones, where it was the best (2026-11).
        """
        return not any(getattr(one.changes.get("positions"), "several_distances", False) for one in self.entries)

    @property
    def count(self) -> int:
        """Candidates that are measured, that of a search included."""
        return len(self.entries) + bool(self.seeds)

    @property
    def groups(self) -> list[list[Candidate]]:
        """The entries by method."""
        found: dict[str, list[Candidate]] = {}
        for one in self.entries:
            found.setdefault(one.method, []).append(one)
        return list(found.values())


def planned(field: Field, spec: ModelSpec, wanted: Wanted, own: bool = False) -> Measuring:
    """What is read for a choice; `own`: the model writes the text itself."""
    goal, real = wanted.goal, reach(wanted.goal.trained, wanted.goal.target, wanted.measured)
    if wanted.compare is None:
        made = Measuring.of(field.count, spec, goal.target, goal.trained, wanted.measured, own, field.leaping)
    else:
        sizes = [len(group) for group in field.groups] + ([1] if field.seeds else [])
        count = wanted.compare.seeds * wanted.compare.windows
        made = comparing(
            sizes, spec, (goal.trained, goal.target), (wanted.compare.readings, count, real), field.leaping
        )
        if wanted.compare.needles:
            tokens = planned_tokens(needle_cells(goal.trained, real, wanted.compare.needles))
            after = Round(len(sizes), math.ceil(tokens / real), real, what="methods, needles")
            made = dataclasses.replace(made, after=(after,))
    if wanted.search is None:
        return made
    leaps = can_leap(spec, goal.trained, goal.target, real)
    size = leaping_size(goal.trained, goal.target) if leaps else real
    readings = wanted.search.readings(len(field.seeds))
    count, more = max(1, wanted.measured // real), more_short(goal.trained, real)
    last = wanted.search.finalists + SEEDS + wanted.search.refining(real + more)
    searching = 0 if leaps else more
    before = (
        Round(1, readings, size, leaps, "a search of factors", searching),
        Round(last, count, real, what="best factors", short=more),
    )
    short = (min(size // 2 if leaps else size, goal.trained, NEAR) + searching,) * wanted.search.windows
    short += (min(real, goal.trained, NEAR) + more,) * count
    return dataclasses.replace(made, before=before, short=(*made.short, *short))


@dataclass
class Chooser:
    """Makes one choice for a model; what was measured before stands in `memory`."""

    lm: LM
    field: Field
    wanted: Wanted
    memory: Remembered
    progress: Progress | None = None
    on_plan: Callable[[str], None] | None = None

    def choose(self, documents: Sequence[Document] | None) -> Chosen:
        """The best candidate on `documents`; None: on a text that the model writes itself."""
        wanted, goal, lm = self.wanted, self.wanted.goal, self.lm
        plan = planned(self.field, lm.model.spec, wanted, documents is None)
        self._tell(plan)
        documents = self._own(plan.written) if documents is None else documents
        trials = Trials(lm, self.memory, self.progress, plan.tokens)
        entries, found = self.field.entries, None
        if wanted.search is not None:
            found = self._searched(trials, documents, wanted.search)
            trials.skip(sum(each.all for each in plan.before) - found.read)
            entries = (*entries, found.best.candidate)
        text = self._text(documents, plan)
        if wanted.compare is None:
            plan = dataclasses.replace(plan, rounds=_fitting(plan.rounds, text))
            outcome = bake_off(trials, entries, text, plan.rounds, goal)
            return Chosen(outcome.winner.candidate, outcome, None, found)
        groups = Field(entries).groups
        contest = Contest(trials, groups, text, plan, goal, wanted.compare, wanted.seed)
        comparison = contest.run(lambda: _filler(lm, documents))
        return Chosen(comparison.winner.standing.candidate, None, comparison, found)

    def _text(self, documents: Sequence[Document], plan: Measuring) -> Text:
        """Real windows, and passages for leaping ones; a comparison has its own text for its choices."""
        lm, wanted, goal = self.lm, self.wanted, self.wanted.goal
        size = leaping_size(goal.trained, goal.target) if plan.leaps else plan.real
        if wanted.compare is None:
            leaping = windows(documents, lm.tokenizer, size, plan.leaps, wanted.seed) if plan.leaps else []
            return Text(windows(documents, lm.tokenizer, plan.real, plan.windows, wanted.seed), leaping)
        count = wanted.compare.seeds * wanted.compare.windows
        every = windows(documents, lm.tokenizer, plan.real, count + LEAPS, wanted.seed)
        if len(every) < count + LEAPS:
            raise DataError(
                f"{wanted.compare.seeds} seeds with {wanted.compare.windows} windows each need {count + LEAPS} windows "
                f"of {plan.real:,} tokens, {LEAPS} of them for choosing settings, but the text has {len(every)}: give "
                "more text or fewer --seeds"
            )
        # every (count / LEAPS)-th window is for choosing, so that both parts come from all over the text
        step = len(every) // LEAPS
        first = [at for at in range(len(every)) if at % step == step // 2][:LEAPS]
        cut = [Sample(every[at].ids[:size], every[at].source, every[at].offset) for at in first]
        real = [one for at, one in enumerate(every) if at not in first]
        # a seed is a share of the windows, dealt in turn
        dealt = [real[at] for seed in range(wanted.compare.seeds) for at in range(seed, count, wanted.compare.seeds)]
        return Text(dealt, cut)

    def _searched(self, trials: Trials, documents: Sequence[Document], settings: Search) -> Found:
        lm, goal, spec = self.lm, self.wanted.goal, self.lm.model.spec
        real = reach(goal.trained, goal.target, self.wanted.measured)
        leaps = can_leap(spec, goal.trained, goal.target, real)
        size = leaping_size(goal.trained, goal.target) if leaps else real
        passages = windows(documents, lm.tokenizer, size, settings.windows, self.wanted.seed)
        text = Text(
            windows(documents, lm.tokenizer, real, max(1, self.wanted.measured // real), self.wanted.seed), passages
        )
        layer = next(layer for layer in spec.layers if layer.positions == 0)
        species = Species(self.field.first, layer, goal.target)
        return search(trials, species, self.field.seeds, text, settings, goal)

    def _own(self, tokens: int) -> list[Document]:
        """A text for the measurement that the model writes itself."""
        lm, seed = self.lm, self.wanted.seed
        if lm.model.spec.both_ways:
            raise ConfigError(
                "an encoder cannot write a text for the measurement itself: give --text FILES, or name a --method"
            )
        if self.progress is not None:
            self.progress(f"no --text: the model writes {tokens} tokens itself for the measurement", 0, 0)

        def written() -> dict[str, str]:
            document = own_text(lm, tokens, seed)
            return {"text": document.text, "source": document.source}

        found = self.memory.value(["own text", tokens, seed], written)
        return [Document(found["text"], found["source"])]

    def _tell(self, plan: Measuring) -> None:
        """Tell `on_plan` about a measurement of more than a minute."""
        model = self.lm.model
        if self.on_plan is None or model.spec.encoder or model.spec.recurrent:
            return
        workload = Demand(range(plan.target), 1).workload(DEFAULT, model).changed(**weights_of(model))
        machine = this_machine(threads=torch.get_num_threads())
        seconds = plan.seconds(workload, GPU if model.device.type == "cuda" else machine.calibration)
        if seconds > MINUTE:
            self.on_plan(plan.words(seconds))


def _fitting(rounds: Sequence[Round], text: Text) -> tuple[Round, ...]:
    """The rounds for as many windows as the text has."""
    left, kept = {True: len(text.leaping), False: len(text.real)}, []
    for each in rounds:
        windows = min(each.windows, left[each.leaping])
        left[each.leaping] -= windows
        if windows:
            kept.append(dataclasses.replace(each, windows=windows))
    return tuple(kept)


def _filler(lm: LM, documents: Sequence[Document]) -> list[int]:
    return [token for document in documents for token in lm.tokenizer.encode(document.text, special=False)]
