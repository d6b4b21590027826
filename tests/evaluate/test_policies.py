"""The table of cache policies: what is freed and lost, against calculations of its own."""

from itertools import pairwise

import pytest
import torch

import handscroll
from handscroll.base.errors import ConfigError
from handscroll.cache.table import cache_of
from handscroll.evaluate.policies import PolicyGrid, policy_table
from handscroll.evaluate.samples import windows
from handscroll.nn.marks import Marks
from handscroll.report import evaluation_page
from handscroll.text.readers import Document
from tests.conftest import ROOT

TEXT = "import os\n\n\ndef walk(top):\n    for name in os.listdir(top):\n        yield os.path.join(top, name)\n\n" * 20


@pytest.fixture(scope="module")
def lm(tiny_folder):
    return handscroll.load(tiny_folder)


@pytest.fixture(scope="module")
def samples(lm):
    return windows([Document(TEXT, "walk.py")], lm.tokenizer, 160, 2)


GRID = PolicyGrid(length=160, budgets=(50.0,), policies=("int8", "int4", "sinks", "h2o"), samples=1)


@pytest.fixture(scope="module")
def record(lm, samples):
    return policy_table(lm, samples, GRID)


def test_rows_and_freed_bytes(lm, samples, record):
    rows = {row["policy"]: row for row in record["rows"]}
    assert list(rows) == ["full", "int8", "int4", "sinks:budget=80", "h2o:budget=80"]
    full = rows["full"]
    assert (full["freed"], full["kl"], full["worst"], full["same"], full["loss"]) == (0, 0, 0, 1, 0)
    for name in ("sinks:budget=80", "h2o:budget=80"):
        assert rows[name]["budget"] == 0.5 and 0.9 < rows[name]["kept_promise"] < 1
        assert rows[name]["freed"] == rows[name]["kept_promise"] / 2
    assert rows["int8"]["kept_promise"] == pytest.approx(1, abs=1e-6)  # its arithmetic is its own bytes
    assert 1 <= rows["int4"]["kept_promise"] < 1.15  # the newest 31 tokens at most are counted twice
    assert 0 < rows["int8"]["kl"] < rows["h2o:budget=80"]["kl"] < 3
    assert all(row["needle"] is None for row in rows.values()), "a model that finds no needle says nothing of them"
    assert record == policy_table(lm, samples, GRID)


@torch.no_grad()
def test_distances_are_those_of_a_plain_loop(lm, samples, record):
    def scores(policy, ids):
        cache, parts = cache_of(policy)(2), []
        edges = [*range(0, 120, 64), *range(120, 160)]
        for first, last in pairwise(edges):
            logits = lm.model(torch.tensor([ids[first:last]]), Marks.run(first, last - first), cache)
            parts.append(logits[0, -1].double().log_softmax(-1))
        return torch.stack(parts[1:])  # the first chunk predicts nothing that is measured

    row = next(row for row in record["rows"] if row["policy"] == "sinks:budget=80")
    apart, change = [], []
    for sample in samples:
        exact, other = scores("full", sample.ids), scores("sinks:budget=80", sample.ids)
        apart.append((exact.exp() * (exact - other)).sum(-1))
        change.append((exact - other).gather(1, torch.tensor(sample.ids[120:])[:, None]))
    assert row["kl"] == pytest.approx(float(torch.cat(apart).mean()), rel=2e-2)
    assert row["worst"] == pytest.approx(float(torch.cat(apart).max()), rel=2e-2)
    assert row["loss"] == pytest.approx(float(torch.cat(change).mean()), rel=2e-2, abs=1e-6)


def test_impossible_tables_are_refused(lm, samples):
    for values, words in (
        ({"budgets": (12.5,)}, r"\b64\b"),
        ({"budgets": (100.0,)}, "100%"),
        ({"policies": ("full",)}, "'full'"),
        ({"policies": ("int9",)}, "'int8'"),
    ):
        with pytest.raises(ConfigError, match=words):
            policy_table(lm, samples, PolicyGrid(length=160, **values))


def test_the_report_shows_the_table(record):
    page = evaluation_page([record])
    (section,) = page.sections
    assert section.title == "Cache policies" and len(section.items[0].rows) == 5
    assert section.items[0].rows[0][:3] == ("full", "100%", "0%") and section.items[0].rows[0][6] == "–"


def test_needles_go_with_what_is_evicted():
    """The shipped model finds needles; a window that is shorter than the way to them loses the early ones."""
    lm = handscroll.load(ROOT / "handscroll" / "starter")
    found = windows([Document(TEXT, "walk.py")], lm.tokenizer, 192, 1)
    grid = PolicyGrid(length=192, budgets=(34.0,), policies=("int8", "window"), samples=1)
    full, int8, window = policy_table(lm, found, grid)["rows"]
    assert full["needle"] >= 0.8 and int8["needle"] == full["needle"]
    assert window["needle"] <= 0.4
    assert full["copying"] == int8["copying"] > 0.8
