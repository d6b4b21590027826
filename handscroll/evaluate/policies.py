"""Measures the memory that every cache policy frees, and its harm against the exact cache, on a real text.

In every window of `length` tokens the first three quarters are a prompt, read in chunks of 64 tokens; the rest is read
token by token. `generate/divergence.py` describes the measures, and the tasks (needles, copying and sums). "Freed" is
the share of the full cache's bytes that the policy no longer holds at the end. The table also shows how much of the
promised saving was really freed. Rounding policies (int8, int4) have no budget; their promise follows from their
number format.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from handscroll.base.config import Config
from handscroll.base.errors import ConfigError, nearest
from handscroll.cache.table import BLOCK, DEFAULT, POLICIES, cache_of, footprint
from handscroll.evaluate.certificate import certify, together
from handscroll.evaluate.haystack import haystack
from handscroll.evaluate.samples import Sample, fingerprint
from handscroll.generate.divergence import Answers, Tasks, Way, answers, decoded, distance, right, tasks
from handscroll.lm import LM

MEASURED = tuple(name for name, kind in POLICIES.items() if kind.rounds or kind.evicts)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


class PolicyGrid(Config):
    """The measurements: each evicting policy in `policies` with each of `budgets`, in percent of the `length` tokens.

    There are `samples` needles at each of five depths, and five times `samples` sums.
    """

    length: int = Field(ge=2 * BLOCK)
    budgets: tuple[float, ...] = (50.0, 25.0, 12.5)
    policies: tuple[str, ...] = MEASURED
    samples: int = Field(default=4, ge=1)

    def rows(self) -> list[tuple[str, float | None]]:
        """Every policy with its options, and the share of the full cache that it may keep.

        The share is None for rounding policies; their number format decides it.

        Raises:
            ConfigError: a policy neither rounds nor evicts, or a budget is below one block of 64 tokens or not below
                100 %.
        """
        for name in self.policies:
            if name not in MEASURED:
                raise ConfigError(f"policy '{name}' cannot be measured: {nearest(name, MEASURED)}")
        made: list[tuple[str, float | None]] = [(name, None) for name in self.policies if POLICIES[name].rounds]
        for percent in self.budgets:
            tokens = int(self.length * percent / 100)
            if tokens < BLOCK or percent >= 100:
                raise ConfigError(
                    f"a budget of {percent:g}% of {self.length} tokens is {tokens} tokens: it must be at least one "
                    f"block of {BLOCK} tokens and below 100%"
                )
            made += [(f"{name}:budget={tokens}", percent / 100) for name in self.policies if POLICIES[name].evicts]
        return made


def policy_table(
    lm: LM, samples: Sequence[Sample], grid: PolicyGrid, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Measure the grid and return the JSON record. In its `rows` the exact cache comes first.

    A row holds `policy`, `budget` (share of the full cache), `freed`, `kept_promise` (freed share / promised share),
    the numbers `kl`, `worst`, `same` and `loss` (`Distance` in `generate/divergence.py`), and the shares `needle`,
    `copying`, `sums` and `answers_alike` (sums with the same answer as the exact cache). A share is None if the task
    was not run, or if the exact cache fails it too. The result is deterministic. The memory needed is the exact
    distributions of all windows: windows x length / 4 x V float32 numbers.

    Raises:
        ConfigError: `PolicyGrid.rows` raises it, or a policy does not work with the model's scaling.
    """
    rows, windows = grid.rows(), torch.tensor([sample.ids for sample in samples])
    first, config = grid.length * 3 // 4, lm.model.config
    depths = [depth for depth in DEPTHS for _ in range(grid.samples)]
    filler = haystack(lm.tokenizer, None, grid.length)
    given = tasks(lm.tokenizer, [sample.ids for sample in samples], filler, depths, 5 * grid.samples)
    sizes: list[int] = []  # bytes of each window's cache

    def read(way: Way) -> Iterator[Tensor]:
        sizes.clear()
        for row in windows:
            scores, size = decoded(lm.model, row[None], first, way)
            sizes.append(size)
            yield scores

    exact = list(read(Way()))
    full, reference = sizes[0], answers(lm.model, lm.tokenizer, given, Way())
    targets = list(windows[:, None, first:])
    table: list[dict[str, Any]] = []
    for number, (policy, share) in enumerate([(DEFAULT, 1.0), *rows]):
        if progress is not None:
            progress(number, len(rows))
        way = Way(cache_of(policy))
        if share is None:
            promised = [footprint(name, config, lm.model.cache_dtype.itemsize) for name in (policy, DEFAULT)]
            share = promised[0].held(grid.length - 1) / promised[1].held(grid.length - 1)
        far = distance(exact, read(way) if table else iter(exact), targets)
        freed = 1 - sizes[0] / full
        row = {
            "policy": policy,
            "budget": share,
            "freed": freed,
            "kept_promise": freed / (1 - share) if table else None,
        }
        found = answers(lm.model, lm.tokenizer, given, way) if table else reference
        table.append(row | far._asdict() | _tasks(given, found, reference))
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
        "certificate": together(certify(sample.ids, grid.length) for sample in samples).record(),
        "rows": table,
    }


def _tasks(given: Tasks, found: Answers, exact: Answers) -> dict[str, float | None]:
    """The share of right answers in each task; None if the exact cache has none right."""
    best, sums = right(given, exact.sums), right(given, found.sums)
    alike = [a == b for a, b in zip(found.sums, exact.sums, strict=True)]
    return {
        "needle": found.needle if exact.needle else None,
        "copying": found.copying if exact.copying else None,
        "sums": sums if best else None,
        "answers_alike": sum(alike) / len(alike) if alike else None,
    }
