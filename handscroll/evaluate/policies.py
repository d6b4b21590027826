"""What every cache policy frees and costs at given budgets, against the exact cache, on a real text.

Of every window of `length` tokens the first three quarters are a prompt, read in chunks of 64; the rest is read token
by token. What is measured there and in needles, copying and sums: `generate/divergence.py`. Freed: bytes that the cache
no longer holds at the end, of those of the full one; beside them how much of what the budget promises was really freed.
Rounding (int8, int4) has no budget; its row stands at the share that its own arithmetic promises.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from handscroll.base.config import Config
from handscroll.base.errors import ConfigError, nearest
from handscroll.cache.table import BLOCK, POLICIES, cache_of, footprint
from handscroll.evaluate.haystack import haystack
from handscroll.evaluate.samples import Sample, fingerprint
from handscroll.generate.divergence import Answers, Tasks, Way, answers, decoded, distance, right, tasks
from handscroll.lm import LM

MEASURED = tuple(name for name, kind in POLICIES.items() if kind.rounds or kind.evicts)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


class PolicyGrid(Config):
    """What to measure: `budgets` in percent of the `length` tokens, for each evicting policy among `policies`.

    `samples` needles at each of five depths, five times as many sums.
    """

    length: int = Field(ge=2 * BLOCK)
    budgets: tuple[float, ...] = (50.0, 25.0, 12.5)
    policies: tuple[str, ...] = MEASURED
    samples: int = Field(default=4, ge=1)

    def rows(self) -> list[tuple[str, float | None]]:
        """Every policy with its options and the share of the full cache that it may keep; None: what it promises.

        Raises:
            ConfigError: a policy that has nothing to measure; a budget below one block of 64 tokens, or not below 100.
        """
        for name in self.policies:
            if name not in MEASURED:
                raise ConfigError(f"no policy to measure: '{name}': {nearest(name, MEASURED)}")
        made: list[tuple[str, float | None]] = [(name, None) for name in self.policies if POLICIES[name].rounds]
        for percent in self.budgets:
            tokens = int(self.length * percent / 100)
            if tokens < BLOCK or percent >= 100:
                raise ConfigError(
                    f"a budget of {percent:g}% of {self.length} tokens is {tokens}: it must be at least one block of "
                    f"{BLOCK} and below 100%"
                )
            made += [(f"{name}:budget={tokens}", percent / 100) for name in self.policies if POLICIES[name].evicts]
        return made


def policy_table(
    lm: LM, samples: Sequence[Sample], grid: PolicyGrid, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Measure and return the JSON record: `rows`, the exact cache first.

    A row holds `policy`, `budget` (share of the full cache), `freed` and `kept_promise` (freed, of what was promised),
    `kl`, `worst`, `same`, `loss` (`harm.Distance`), and the shares `needle`, `copying`, `sums` and `answers_alike`
    (sums answered as the exact cache answers them). None: not asked, or a task that the exact cache fails too.
    Deterministic. Memory: the exact distributions of all windows, windows x length / 4 x V float32 numbers.

    Raises:
        ConfigError: see `PolicyGrid.rows`; a policy that does not go with the model's scaling.
    """
    rows, windows = grid.rows(), torch.tensor([sample.ids for sample in samples])
    first, config = grid.length * 3 // 4, lm.model.config
    depths = [depth for depth in DEPTHS for _ in range(grid.samples)]
    filler = haystack(lm.tokenizer, None, grid.length)
    given = tasks(lm.tokenizer, [sample.ids for sample in samples], filler, depths, 5 * grid.samples)
    sizes: list[int] = []  # of each window's cache

    def read(way: Way) -> Iterator[Tensor]:
        sizes.clear()
        for row in windows:
            scores, size = decoded(lm.model, row[None], first, way)
            sizes.append(size)
            yield scores

    exact = list(read(Way()))
    full, told = sizes[0], answers(lm.model, lm.tokenizer, given, Way())
    targets = list(windows[:, None, first:])
    table: list[dict[str, Any]] = []
    for number, (policy, share) in enumerate([("full", 1.0), *rows]):
        if progress is not None:
            progress(number, len(rows))
        way = Way(cache_of(policy))
        if share is None:
            promised = [footprint(name, config, lm.model.dtype.itemsize) for name in (policy, "full")]
            share = promised[0].held(grid.length - 1) / promised[1].held(grid.length - 1)
        far = distance(exact, read(way) if table else iter(exact), targets)
        freed = 1 - sizes[0] / full
        row = {
            "policy": policy,
            "budget": share,
            "freed": freed,
            "kept_promise": freed / (1 - share) if table else None,
        }
        found = answers(lm.model, lm.tokenizer, given, way) if table else told
        table.append(row | far._asdict() | _tasks(given, found, told))
    return {
        "kind": "policies",
        "model": lm.source,
        "length": grid.length,
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "windows": len(samples),
        "needles": len(given.needles),
        "sums": len(given.sums),
        "sources": [f"{sample.source}@{sample.offset}" for sample in samples],
        "text_sha256": fingerprint(samples),
        "rows": table,
    }


def _tasks(given: Tasks, found: Answers, exact: Answers) -> dict[str, float | None]:
    """The shares reached in each task; None where the exact cache reaches nothing."""
    best, sums = right(given, exact.sums), right(given, found.sums)
    alike = [a == b for a, b in zip(found.sums, exact.sums, strict=True)]
    return {
        "needle": found.needle if exact.needle else None,
        "copying": found.copying if exact.copying else None,
        "sums": sums if best else None,
        "answers_alike": sum(alike) / len(alike) if alike else None,
    }
