"""The search of the effective length: the verdict of a full grid for a part of its tokens, with an error that holds."""

import math
import random

import pytest

import handscroll
from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.evaluate import probing
from handscroll.evaluate.haystack import haystack
from handscroll.evaluate.length import LengthSearch, confidence, decided, search, wealth
from handscroll.evaluate.needle import NeedleGrid, needle_grid
from handscroll.evaluate.probing import effective_length
from tests.conftest import ROOT

DOUBLINGS = tuple(512 << n for n in range(8))
EVEN = tuple(1024 * (n + 1) for n in range(8))
DEPTHS, SAMPLES = 15, 20


class Simulated:
    """A model whose share of found needles falls with the length, earlier in the middle of the text."""

    def __init__(self, number, lengths):
        draw = random.Random(number)
        middle, slope = draw.uniform(math.log2(lengths[0]) - 1, math.log2(lengths[-1]) + 2), draw.uniform(1.5, 8)
        dip = draw.uniform(0, 2)

        def found(length, depth):
            fall = slope * (math.log2(length) - middle + dip * 4 * depth * (1 - depth))
            return draw.random() < 1 / (1 + math.exp(min(fall, 700)))

        places = [(n + 0.5) / DEPTHS for n in range(DEPTHS)]
        self.table = {
            length: [[found(length, depth) for depth in places] for _ in range(SAMPLES)] for length in lengths
        }
        self.tokens = 0

    def probe(self, length, number):
        self.tokens += DEPTHS * length
        return self.table[length][number]

    def by_grid(self, threshold):
        """The verdict of all cells, as `effective` gives it."""
        longest = None
        for length, rows in self.table.items():
            if sum(map(sum, rows)) < threshold * DEPTHS * SAMPLES:
                break
            longest = length
        return longest


@pytest.mark.parametrize("lengths", [DOUBLINGS, EVEN], ids=["doublings", "even"])
def test_the_verdict_is_that_of_the_grid_for_a_fifth_of_its_tokens(lengths):
    """200 simulated models: the same effective length in at least 95 %, with at most 20 % of the tokens."""
    settings = LengthSearch(lengths=lengths, strata=DEPTHS, rounds=SAMPLES)
    same, tokens = 0, 0
    for number in range(200):
        model = Simulated(number, lengths)
        found = search(settings, model.probe)
        same += found.length == model.by_grid(settings.threshold)
        tokens += model.tokens
        assert (found.low or 0) <= (found.length or 0) <= (found.high or 0)
    grid = 200 * sum(lengths) * DEPTHS * SAMPLES
    assert same >= 190 and tokens <= 0.2 * grid, (same, tokens / grid)


def test_the_error_holds_at_every_round_whatever_the_strata_are():
    """Of 400 tests of a share on the wrong side of the threshold, looked at after every round, 5 % at most err, however
    unequal the strata are; and the confidence sequence loses the true share as seldom."""
    for strata, wrong in (((1.0, 1.0, 0.7, 0.69), "above"), ((0.84,) * 4, "above"), ((1.0, 1.0, 1.0, 0.41), "below")):
        draw, erred, lost = random.Random(1), 0, 0
        mean = sum(strata) / 4
        for _ in range(400):
            hits = trials = 0
            err = out = False
            for _ in range(60):
                hits, trials = hits + sum(draw.random() < share for share in strata), trials + 4
                err = err or decided(hits, trials, 0.85, 0.05) == wrong
                out = (
                    out
                    or wealth(hits, trials, mean, True) >= math.log(40)
                    or (wealth(hits, trials, mean, False) >= math.log(40))
                )
            erred, lost = erred + err, lost + out
        assert erred <= 20 and lost <= 20, (strata, erred, lost)


def test_the_error_holds_for_shares_of_needles_that_stand_together():
    """Outcomes between 0 and 1, with a mean on the wrong side of the threshold or on it."""
    for outcomes in ((0.25, 0.95, 1.0), (0.0, 1.0, 1.0), (0.6, 0.7, 0.75)):
        draw, mean, erred = random.Random(2), sum(outcomes) / 3, {"above": 0, "below": 0}
        for wrong in erred:
            for _ in range(200):
                hits, err = 0.0, False
                for trial in range(1, 101):
                    hits += draw.choice(outcomes)
                    err = err or decided(hits, trial, mean, 0.05) == wrong
                erred[wrong] += err
        assert max(erred.values()) <= 10, (outcomes, erred)


def test_several_needles_give_the_share_that_is_found(monkeypatch):
    """Of four needles that stand together the starter finds some: the search counts those, as the grid does."""
    lm, seen = handscroll.load(ROOT / "handscroll" / "starter", dtype="float32"), []

    def watched(*given):
        record = needle_grid(*given)
        seen.extend(record["outcomes"])
        return record

    monkeypatch.setattr(probing, "needle_grid", watched)
    settings = LengthSearch(lengths=(200,), strata=3, rounds=2, threshold=0.5, error=1e-6)
    grid = NeedleGrid(lengths=(200,), needles=4)
    record = effective_length(lm, haystack(lm.tokenizer, None, 4000, most=9000), settings, grid)
    marks = [outcome["correct"] for outcome in seen]
    assert any(0 < mark.count("1") < 4 for mark in marks), "or this test proves nothing"
    (test,) = record["tests"]
    assert test["hits"] == "".join(marks).count("1") and test["trials"] == 2 * 3 * 4
    assert test["share"] == pytest.approx(test["hits"] / test["trials"])
    assert test["low"] < test["share"] < test["high"]


def test_as_many_strata_as_are_allowed(tiny_folder):
    lm = handscroll.load(tiny_folder)
    settings = LengthSearch(lengths=(900,), strata=64, rounds=1, error=1e-9)
    record = effective_length(lm, haystack(lm.tokenizer, None, 2000, most=5000), settings, NeedleGrid(lengths=(900,)))
    assert record["tests"][0]["trials"] == 64


def test_confidence_narrows_around_the_share():
    for hits, trials in ((9, 10), (90, 100), (900, 1000)):
        low, high = confidence(hits, trials, 0.05)
        assert low < hits / trials < high
    assert (low, high) == pytest.approx((0.9, 0.9), abs=0.04)
    low, high = confidence(30, 30, 0.05)
    assert 0.8 < low < 0.95 and high == 1.0
    assert confidence(0, 30, 0.05)[0] == 0.0


def test_the_search_halves_and_says_what_is_sure():
    settings = LengthSearch(lengths=(1, 2, 3, 4, 5, 6, 7), strata=5, rounds=20)
    for passing in range(8):
        found = search(settings, lambda length, number, passing=passing: [length <= passing] * 5)
        assert found.length == found.low == found.high == (passing or None) and len(found.tests) <= 3
        assert all(test.sure and test.trials <= 50 for test in found.tests)
    close = search(settings, lambda length, number: [True, True, True, True, number % 4 > 0])  # a share of 0.95
    assert close.length == 7 and not all(test.sure for test in close.tests) and close.low is None and close.high == 7
    with pytest.raises(ConfigError, match="rise"):
        search(LengthSearch(lengths=(2, 1)), lambda length, number: [True] * 5)


def test_the_starter_has_its_length(tmp_path):
    """The shipped model finds needles within its 512 tokens and loses them far beyond; a stopped search goes on."""
    lm = handscroll.load(ROOT / "handscroll" / "starter", dtype="float32")
    filler, keep = haystack(lm.tokenizer, None, 4000, most=9000), tmp_path / "rounds.jsonl"
    settings, grid = LengthSearch(lengths=(96, 1024), strata=3, error=0.3), NeedleGrid(lengths=(128,))
    record = effective_length(lm, filler, settings, grid, keep=keep)
    assert record["effective"] == 96 and record["certificate"]["seen"] == record["certificate"]["offered"]
    assert record["tokens"] < 0.5 * record["tokens_grid"]["shared"] < record["tokens_grid"]["alone"]
    lines = keep.read_text().splitlines(keepends=True)
    keep.write_text("".join(lines[:4]))
    assert effective_length(lm, filler, settings, grid, keep=keep) == record
    assert keep.read_text() == "".join(lines)
    with pytest.raises(CheckpointError, match="search"):
        effective_length(lm, filler, settings.model_copy(update={"seed": 3}), grid, keep=keep)
