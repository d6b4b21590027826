"""The search of the effective length: the verdict of a full grid for a part of its tokens, with an error that holds."""

import math
import random

import pytest

import handscroll
from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.evaluate.haystack import haystack
from handscroll.evaluate.length import LengthSearch, confidence, decided, search, wealth
from handscroll.evaluate.needle import NeedleGrid
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
