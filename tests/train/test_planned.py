"""The memory settings of a run: chosen before it starts, and again when it resumes with another number of ranks."""

import pytest

from handscroll.base.errors import ConfigError
from handscroll.base.workload import CHUNKED
from handscroll.plan.workloads import recipe_workloads
from handscroll.train.parallel.world import World
from handscroll.train.planned import planned
from handscroll.train.step import Memory


class Pretended(World):
    """The first rank of several, without the others."""

    def of_first(self, make):
        return make()

    def every(self, value):
        return [value] * self.size


def test_a_run_without_chunks_goes_on_with_ranks_that_share_tokens(recipe, tmp_path):
    """`auto` chose a strategy without chunks on one rank, which the ranks that share the tokens of a row cannot use."""
    workloads = recipe_workloads(recipe())
    assert planned(Memory(), workloads, tmp_path).memory.strategy == "plain"
    shared = planned(Memory(), workloads, tmp_path, Pretended(0, 2, 2)).memory
    assert shared.strategy in CHUNKED and shared.chunk == 1024
    assert planned(Memory(), workloads, tmp_path, Pretended(0, 2, 2)).memory == shared
    assert planned(Memory(), workloads, tmp_path).memory == shared


@pytest.mark.parametrize("strategy", ["plain", "checkpoint"])
def test_a_named_strategy_without_chunks_cannot_share_tokens(recipe, strategy, tmp_path):
    memory = Memory(strategy=strategy)
    with pytest.raises(ConfigError, match=f"parallel.context = 2 .*'{strategy}' has no chunks.*layer-outer"):
        planned(memory, recipe_workloads(recipe(f"memory.strategy={strategy}")), tmp_path, Pretended(0, 2, 2))
