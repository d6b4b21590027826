"""Searches the factors of LongRoPE for a model: one for each rotated pair, by evolution on cheap windows.

Ding et al. 2024 ("LongRoPE", arXiv:2402.13753, section 3.2) evolve factors that grow with the dimension, from the
solutions of interpolation, NTK and YaRN, by mutation and crossover, and measure every candidate at the full length.
Here a child first reads one leaping window (`extend/windows.py`), the better half reads another, and only children that
would enter the population read all of them. The strength of attention (`attention_factor`) is evolved too. A few at the
end read real windows, with the best seeds, and their children do too: what a leaping window prefers is not always
better there (starter, 512 to 4,096 tokens: without this, one search of two ended at its seed). So the result is never
worse than its seeds on these windows.

Equal seeds give equal factors. What was measured is remembered by the candidate, so a search that was interrupted walks
the same way again and measures only what is missing.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import Field

from handscroll.base.config import Config
from handscroll.base.errors import ConfigError
from handscroll.base.spec import LayerSpec
from handscroll.evaluate.samples import Sample
from handscroll.extend.bakeoff import Goal, Text
from handscroll.extend.trials import Standing, Trials
from handscroll.extend.windows import Window
from handscroll.nn.positions.candidate import Candidate
from handscroll.nn.scaling.base import plain_frequencies

BEYOND = 2.0  # a factor is at most this times the ratio of the lengths
STRONGEST = 2.0  # attention is at most this many times as strong as YaRN's 0.1 ln s
SEEDS = 3  # seeds that read real windows beside the finalists
REFINING = 200_000  # tokens of real windows that children read, without the better ones' further windows


class Search(Config):
    """Sizes of the search. A generation makes `children`; `parents` survive it, judged on `windows` leaping windows.
    `finalists` read real windows, and at most `refine` children of theirs do, fewer if the windows are long."""

    generations: int = Field(default=12, ge=1)
    children: int = Field(default=12, ge=2)
    parents: int = Field(default=6, ge=2)
    windows: int = Field(default=3, ge=2)
    finalists: int = Field(default=4, ge=1)
    refine: int = Field(default=48, ge=0)
    seed: int = Field(default=0, ge=0)

    def readings(self, seeds: int) -> int:
        """Most leaping windows that are read, from `seeds` seeds on."""
        first = seeds + -(-seeds // 2) + min(seeds, self.parents) * (self.windows - 2)
        each = self.children + -(-self.children // 2) + min(self.parents, -(-self.children // 2)) * (self.windows - 2)
        return first + self.generations * each

    def refining(self, cost: int) -> int:
        """Children that read real windows, each for `cost` tokens."""
        return min(self.refine, REFINING // cost)


@dataclass(frozen=True)
class Genome:
    """The logarithm of the factor of each pair, which never falls, and the strength of attention (1: YaRN's)."""

    logs: tuple[float, ...]
    strength: float

    @classmethod
    def of(cls, logs: Sequence[float], strength: float, ratio: float) -> "Genome":
        """The nearest genome within the limits, rounded, so that it is written and read without a change."""
        kept, highest = [], 0.0
        for value in logs:
            highest = max(highest, min(value, math.log(BEYOND * ratio)))
            kept.append(round(highest, 4))
        return cls(tuple(kept), round(min(max(strength, 0.0), STRONGEST), 3))


@dataclass(frozen=True)
class Found:
    """The best factors, the best seed beside them, and what the search cost."""

    best: Standing
    seed: Standing
    genomes: int
    read: int
    guard: float

    def record(self) -> dict[str, Any]:
        return {
            "measured": self.genomes,
            "tokens": self.read,
            "loss": self.best.long,
            "best_seed": self.seed.candidate.name,
            "best_seed_loss": self.seed.long,
            "score_gained": self.seed.score(self.guard) - self.best.score(self.guard),
        }


class Species:
    """What a genome means for rotary `positions`, as they were trained, lengthened to `to` tokens; `layer` is one that
    they rotate."""

    def __init__(self, positions: Any, layer: LayerSpec, to: int):
        self.positions, self.layer, self.to = positions, layer, to
        self.ratio = to / positions.trained
        self.plain = plain_frequencies(layer.rotated, positions.base)

    def seed(self, candidate: Candidate) -> Genome:
        """The genome of another method's candidate."""
        new = candidate.changes["positions"]
        frequencies = new.scaling.inverse_frequencies(self.layer.rotated, new.base, self.to)
        logs = torch.log(self.plain / frequencies).tolist()
        strength = (new.scaling.attention_factor(self.to) - 1.0) / (0.1 * math.log(self.ratio))
        return Genome.of(logs, strength, self.ratio)

    def candidate(self, genome: Genome) -> Candidate:
        """The genome as an ordinary LongRoPE; requests within the trained length keep their frequencies."""
        factors: dict[str, Any] = {"long_factor": [round(math.exp(log), 6) for log in genome.logs]}
        factors["short_factor"] = [1.0] * len(genome.logs)
        factors["attention_factor"] = round(1.0 + genome.strength * 0.1 * math.log(self.ratio), 5)
        made = self.positions.candidates("longrope", self.to, self.positions, self.layer, factors)[0]
        return replace(made, detail="searched factors")


@dataclass
class Evolution:
    """A search in progress. Standings are by genome and hold trials on the first leaping windows, in order."""

    species: Species
    trials: Trials
    settings: Search
    guard: float
    windows: Sequence[Window]
    bases: Sequence[float]

    def __post_init__(self) -> None:
        self.known: dict[Genome, Standing] = {}
        self._chance = random.Random(self.settings.seed)

    def measured(self, genomes: Sequence[Genome], windows: int) -> list[Genome]:
        """`genomes`, measured on the first `windows` windows at least, the best first."""
        for genome in genomes:
            there = self.known.get(genome) or Standing(self.species.candidate(genome))
            done = len(there.trials)
            self.known[genome] = self.trials.further([there], self.windows[done:windows], self.bases[done:windows])[0]
        return sorted(genomes, key=lambda one: (self.score(one, windows), one.logs))

    def score(self, genome: Genome, windows: int) -> float:
        known = self.known[genome]
        return Standing(known.candidate, known.trials[:windows]).score(self.guard)

    def first(self, seeds: Sequence[Genome]) -> list[Genome]:
        """The first population: the best of the seeds."""
        best = self.measured(seeds, 1)
        best = self.measured(best[: -(-len(best) // 2)], 2)
        return self.measured(best[: self.settings.parents], len(self.windows))

    def generation(self, population: Sequence[Genome], age: float) -> list[Genome]:
        """The population after one more generation; `age` is the share of the search that is over."""
        every, made = len(self.windows), set[Genome]()
        for _ in range(20 * self.settings.children):
            if len(made) == self.settings.children:
                break
            child = self._child(population, age)
            if child not in self.known:
                made.add(child)
        best = self.measured(sorted(made, key=lambda one: one.logs), 1)
        best = self.measured(best[: -(-len(best) // 2)], min(2, every))
        worst = max(self.score(one, min(2, every)) for one in population)
        hopeful = [one for one in best if self.score(one, min(2, every)) < worst][: self.settings.parents]
        return self.measured([*population, *hopeful], every)[: self.settings.parents]

    def refined(self, population: Sequence[Genome], children: int) -> list[Genome]:
        """The population after so many children, one after the other, each close to its parent."""
        every = len(self.windows)
        for number in range(children):
            child = self._child(population, 0.8 + 0.2 * number / children)
            if child in self.known:
                continue
            self.measured([child], 1)
            if self.score(child, 1) < max(self.score(one, 1) for one in population):
                population = self.measured([*population, child], every)[: len(population)]
        return list(population)

    def _child(self, population: Sequence[Genome], age: float) -> Genome:
        """A crossover of two of the population, or a mutation of one; the better ones are chosen more often."""
        chance, size = self._chance, len(population[0].logs)
        one, other = (population[int(len(population) * chance.random() ** 2)] for _ in range(2))
        if chance.random() < 0.4 and one != other:
            share, cut = chance.random(), chance.randrange(size)
            blend = [share * a + (1 - share) * b for a, b in zip(one.logs, other.logs, strict=True)]
            logs = [*one.logs[:cut], *other.logs[cut:]] if chance.random() < 0.5 else blend
            return Genome.of(logs, share * one.strength + (1 - share) * other.strength, self.species.ratio)
        wide = 0.5 * (1 - 0.8 * age) * math.log(self.species.ratio)
        first = chance.randrange(size)
        last = min(size, first + 1 + int(size * chance.random() ** 2))
        change = chance.gauss(0, wide)
        logs = [log + change if first <= at < last else log for at, log in enumerate(one.logs)]
        for at in range(first):  # the running maximum would undo what falls below the factors before it
            logs[at] = min(logs[at], logs[first])
        strength = one.strength + (chance.gauss(0, 0.3) if chance.random() < 0.4 else 0.0)
        return Genome.of(logs, strength, self.species.ratio)


def _passage(sample: Sample, goal: Goal, real: int) -> Window:
    """A leaping window of a passage, or a real one where the passage is as long."""
    make = Window.leaping if len(sample.ids) < real else Window.real
    return make(sample, goal.trained, goal.target)


def search(
    trials: Trials, species: Species, seeds: Sequence[Candidate], text: Text, settings: Search, goal: Goal
) -> Found:
    """The best factors for the goal, measured on `text`."""
    if len(text.leaping) < 2:
        raise ConfigError("the search needs two passages of text at least; give longer files")
    leaping = [_passage(sample, goal, len(text.real[0].ids)) for sample in text.leaping]
    trials.note("the model as it is")
    bases = [trials.base(each) for each in leaping]
    begun = trials.read
    evolution = Evolution(species, trials, settings, goal.guard, leaping, bases)
    known = {species.seed(one): one.name for one in seeds}
    population = evolution.first(list(known))
    seeds_kept = population[:SEEDS]
    for number in range(settings.generations):
        population = evolution.generation(population, number / settings.generations)
    evolved = trials.read - begun
    real = [Window.real(sample, goal.trained, goal.target) for sample in text.real]
    bases = [trials.base(each) for each in real]
    begun = trials.read
    last = Evolution(species, trials, settings, goal.guard, real, bases)
    final = last.measured(list(dict.fromkeys([*population[: settings.finalists], *seeds_kept])), len(real))
    final = last.refined(final, settings.refining(real[0].cost))
    first = last.measured(seeds_kept, len(real))[0]
    seed, best = last.known[first], last.known[final[0]]
    named = Candidate(known[first], "as a seed", seed.candidate.changes)
    genomes = len(evolution.known | last.known)
    return Found(best, Standing(named, seed.trials), genomes, evolved + trials.read - begun, goal.guard)
