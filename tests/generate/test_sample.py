"""Samplers against the processors of the reference library, and properties of their distributions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from handscroll.base.errors import ConfigError
from handscroll.generate.request import BIAS
from handscroll.generate.sample import (
    COLDEST,
    HOTTEST,
    PENALTIES,
    Sampling,
    candidates,
    divide_by_temperature,
    draw,
    generator,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_repetition,
    pick,
)
from tests.naming import naming


def logits_of(seed, rows=4, vocab=50, spread=3.0):
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * spread


def seen_of(ids, vocab):
    return torch.zeros(ids.shape[0], vocab, dtype=torch.bool).scatter_(1, ids, True)


def same(ours, theirs):
    assert torch.equal(ours == -math.inf, theirs == -math.inf)
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1))


@pytest.mark.parametrize("seed", range(5))
def test_each_function_equals_the_reference_processor(seed):
    logits = logits_of(seed)
    ids = torch.randint(0, 50, (4, 12), generator=torch.Generator().manual_seed(seed))
    for k in (1, 7, 50, 80):
        assert torch.equal(keep_top_k(logits, k), TopKLogitsWarper(k)(ids, logits))
    for p in (0.01, 0.3, 0.9, 0.999):
        assert torch.equal(keep_top_p(logits, p), TopPLogitsWarper(p)(ids, logits))
        assert torch.equal(keep_min_p(logits, p), MinPLogitsWarper(p)(ids, logits))
    for penalty in (0.8, 1.3, 5.0):
        want = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits)
        assert torch.equal(penalise_repetition(logits, seen_of(ids, 50), penalty), want)
    for temperature in (0.1, 0.7, 2.5):
        same(divide_by_temperature(logits, temperature), TemperatureLogitsWarper(temperature)(ids, logits))


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 5, 30]),
    top_p=st.sampled_from([0.2, 0.7, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.4]),
    penalty=st.sampled_from([1.0, 0.7, 1.4]),
)
def test_combined_in_the_order_of_the_reference(seed, temperature, top_k, top_p, min_p, penalty):
    logits = logits_of(seed)
    ids = torch.randint(0, 50, (4, 12), generator=torch.Generator().manual_seed(seed))
    theirs = LogitsProcessorList()
    if penalty != 1.0:
        theirs.append(RepetitionPenaltyLogitsProcessor(penalty))
    theirs.append(TemperatureLogitsWarper(temperature))
    if top_k:
        theirs.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        theirs.append(TopPLogitsWarper(top_p))
    if min_p:
        theirs.append(MinPLogitsWarper(min_p))
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty)
    same(candidates(logits, sampling, seen_of(ids, 50)), theirs(ids, logits))


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), p=st.floats(0.01, 0.999), spread=st.sampled_from([0.1, 1.0, 5.0, 40.0]))
def test_top_p_is_the_smallest_set_that_reaches_the_mass(seed, p, spread):
    logits = logits_of(seed, spread=spread)
    probabilities = logits.double().softmax(-1)
    for row, kept in zip(probabilities, keep_top_p(logits, p) > -math.inf, strict=True):
        assert kept.any()
        inside = row[kept]
        assert inside.sum() >= p - 1e-5
        assert inside.sum() - inside.min() <= p + 1e-5  # without its least probable token it is too small
        assert kept.all() or inside.min() >= row[~kept].max()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), p=st.floats(0.001, 0.999), k=st.integers(1, 60))
def test_cuts_keep_the_best_token_and_change_no_kept_logit(seed, p, k):
    logits = logits_of(seed)
    for cut in (keep_top_k(logits, k), keep_top_p(logits, p), keep_min_p(logits, p)):
        assert torch.equal(cut.argmax(-1), logits.argmax(-1))
        kept = cut > -math.inf
        assert torch.equal(cut[kept], logits[kept])


def test_ties_at_the_border_of_top_p_keep_the_lower_id():
    kept = keep_top_p(torch.zeros(1, 4), 0.5) > -math.inf
    assert kept.tolist() == [[True, True, False, False]]


def test_tiny_temperature_is_finite_and_greedy():
    logits = logits_of(0, spread=300.0)
    sampling = Sampling(temperature=COLDEST)
    chosen = pick(logits, sampling, [generator(0, row) for row in range(4)])
    assert torch.equal(chosen, logits.argmax(-1))


@pytest.mark.parametrize("temperature", [0.0, COLDEST, HOTTEST])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_ends_of_the_ranges_give_a_token_that_is_allowed(temperature, penalty):
    logits = logits_of(0, spread=300.0)
    logits[:, 3] += BIAS
    logits[:, 4] -= BIAS
    logits[:, 10:] = -math.inf  # as under a constraint
    sampling = Sampling(temperature=temperature, repetition_penalty=penalty)
    seen = torch.ones(4, 50, dtype=torch.bool)
    assert not candidates(logits, sampling, seen).isnan().any()
    assert bool((pick(logits, sampling, [generator(0, row) for row in range(4)], seen) < 10).all())


def test_drawn_frequencies_follow_the_distribution():
    logits = torch.tensor([[0.0, 1.0, -math.inf, 2.0, -1.0]])
    count = 20_000
    stream = generator(3, 0)
    drawn = torch.bincount(draw(logits.expand(count, -1), [stream] * count), minlength=5)
    want = logits.softmax(-1)[0].double() * count
    assert drawn[2] == 0
    live = want > 0
    chi_square = ((drawn[live] - want[live]) ** 2 / want[live]).sum()
    assert chi_square < 16.3  # 3 degrees of freedom, one in a thousand; the seed is fixed


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**40), keep=st.integers(1, 6))
def test_never_draws_a_token_of_probability_zero(seed, keep):
    logits = keep_top_k(logits_of(seed % 1000, rows=1, vocab=1000), keep)
    assert logits[0, int(draw(logits, [generator(seed, 0)]))] > -math.inf


@pytest.mark.parametrize("number", [0.0, 1.0 - 2.0**-53])
def test_smallest_and_largest_uniform_number_stay_inside(number, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([number], dtype=torch.float64))
    for seed in range(50):
        logits = keep_top_k(logits_of(seed, rows=1, vocab=1000), 3)
        assert logits[0, int(draw(logits, [generator(0, 0)]))] > -math.inf


def test_streams_depend_on_seed_and_row_only():
    first = [torch.rand(3, generator=generator(seed, row)).tolist() for seed in range(5) for row in range(5)]
    again = [torch.rand(3, generator=generator(seed, row)).tolist() for seed in range(5) for row in range(5)]
    assert first == again
    assert len({tuple(numbers) for numbers in first}) == 25


def test_a_row_draws_the_same_with_other_neighbours():
    logits = logits_of(1)
    sampling = Sampling(temperature=1.0, top_p=0.9)
    together = pick(logits, sampling, [generator(5, row) for row in range(4)])
    for row in range(4):
        assert pick(logits[row : row + 1], sampling, [generator(5, row)]) == together[row]


def test_half_precision_is_sampled_in_float32():
    assert candidates(logits_of(0).bfloat16(), Sampling(temperature=0.5)).dtype == torch.float32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_tokens": 0}, naming("max_tokens", 0, 1)),
        ({"temperature": -0.5}, naming("temperature", -0.5)),
        ({"temperature": 1e-300}, naming("temperature", 1e-300, "1e-10")),
        ({"temperature": 1e300}, naming("temperature", 1e300)),
        ({"temperature": math.inf}, "finite"),
        ({"temperature": math.nan}, "finite"),
        ({"top_k": -1}, naming("top_k", -1)),
        ({"top_p": 0.0}, naming("top_p", 0.0, 0, 1)),
        ({"top_p": 1.5}, naming("top_p", 1.5)),
        ({"min_p": 1.0}, naming("min_p", 1.0)),
        ({"repetition_penalty": 0.0}, naming("repetition_penalty", 0.0)),
        ({"repetition_penalty": 1e-300, "temperature": 1.0}, naming("repetition_penalty", 1e-300, 0.01, 100)),
        ({"repetition_penalty": 1e300}, naming("repetition_penalty", 1e300, 0.01, 100)),
        ({"stop": ["a", ""]}, "empty"),
        ({"top_k": 5, "top_p": 0.9}, naming("top_k", "top_p")),
        ({"temperatur": 1.0}, "'temperature'"),
    ],
)
def test_bad_settings_are_explained(values, message):
    with pytest.raises(ConfigError, match=message):
        Sampling.parse(values, "--set")


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        Sampling().seed = 3
