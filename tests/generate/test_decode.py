"""Batched decoding against the reference library's greedy search, and against each row alone."""

import logging

import numpy as np
import pytest
import torch

from handscroll.base.errors import CapacityError, CheckpointError, ConfigError, DataError
from handscroll.cache.full import FullCache
from handscroll.evaluate.branching import begin, greedy
from handscroll.generate.check import started
from handscroll.generate.chooser import Chooser
from handscroll.generate.decode import follow
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling
from handscroll.models.weights import load_model
from tests.conformance.families import FORMS, reference, save
from tests.generate.asking import decode
from tests.generate.material import Letters, loaded, prompts_of, written
from tests.naming import naming


@pytest.mark.parametrize(
    ("family", "scaling"),
    [
        ("llama", "none"),
        ("llama-biased", "none"),
        ("mistral-window", "none"),
        ("qwen2-window", "none"),
        ("qwen3", "none"),
        ("gpt2", "none"),
        ("llama", "yarn"),
        ("llama", "linear"),
        ("qwen2", "llama3"),
    ],
)
def test_greedy_equals_the_reference_and_each_row_alone(family, scaling, tmp_path, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "disabled", True)
    theirs = reference(family, scaling)
    model = load_model(save(theirs, tmp_path))
    prompts, sampling = prompts_of(), Sampling(max_tokens=30)
    rows, ends = written(model, prompts, sampling, eos=model.config.eos)
    for prompt, row, end in zip(prompts, rows, ends, strict=True):
        tokens = torch.tensor([prompt])
        made = theirs.generate(
            tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=30, pad_token_id=0
        )
        assert row == made[0, len(prompt) :].tolist()
        assert end == ("eos" if row[-1] in model.config.eos else "length")
        assert written(model, [prompt], sampling, eos=model.config.eos)[0] == [row]


def test_greedy_with_a_repetition_penalty_equals_the_reference(tmp_path):
    theirs = reference("llama")
    model = load_model(save(theirs, tmp_path))
    prompts = prompts_of()
    rows, _ = written(model, prompts, Sampling(max_tokens=30, repetition_penalty=1.5))
    plain, _ = written(model, prompts, Sampling(max_tokens=30))
    assert rows != plain
    for prompt, row in zip(prompts, rows, strict=True):
        tokens = torch.tensor([prompt])
        made = theirs.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=30,
            eos_token_id=96 + 100,
            repetition_penalty=1.5,
            pad_token_id=0,
        )
        assert row == made[0, len(prompt) :].tolist()


@pytest.mark.parametrize("scaling", ["dynamic", "longrope"])
def test_length_dependent_scaling_is_fixed_by_the_declared_length(scaling, tmp_path):
    model = loaded(tmp_path, "llama", scaling, torch.float64)
    prompt, new = prompts_of((50,))[0], 40  # crosses the trained 64 while decoding
    rows, _ = written(model, [prompt], Sampling(max_tokens=new))
    with torch.no_grad():
        declared = model.config.positions.scaling.declared(len(prompt) + new)
        assert declared == {"dynamic": 128, "longrope": 90}[scaling]
        whole = model(torch.tensor([prompt + rows[0]]), length=declared)[0]
        other = model(torch.tensor([prompt + rows[0]]), length=64)[0]
    assert whole.argmax(-1)[len(prompt) - 1 : -1].tolist() == rows[0]
    assert (whole - other).abs().max() > 1e-2  # the declared length matters here


@pytest.mark.parametrize("scaling", ["dynamic", "longrope", "yarn"])
def test_neighbours_do_not_change_a_row_under_any_scaling(scaling, tmp_path):
    model = loaded(tmp_path, "llama", scaling)
    prompts, sampling = prompts_of((10, 70, 12, 70, 90)), Sampling(max_tokens=20)
    rows, _ = written(model, prompts, sampling)
    for prompt, row in zip(prompts, rows, strict=True):
        assert written(model, [prompt], sampling)[0] == [row]


def test_rows_with_the_same_tables_are_decoded_together(tmp_path):
    prompts, sampling = prompts_of((10, 70, 12, 90)), Sampling(max_tokens=20)

    def batches(scaling):
        steps = decode(loaded(tmp_path, "llama", scaling), prompts, sampling)
        return list(dict.fromkeys(tuple(item.row for item in step) for step in steps))

    assert batches("yarn") == [(0, 1, 2, 3)]
    assert batches("longrope") == [(0, 2), (1, 3)]
    assert batches("dynamic") == [(0, 2), (1, 3)]  # up to 64, up to 128


def test_small_chunks_write_the_same(tmp_path):
    model = loaded(tmp_path, dtype=torch.float64)
    prompts, sampling = prompts_of(), Sampling(max_tokens=12)
    want = written(model, prompts, sampling)
    for chunk in (1, 7):
        assert written(model, prompts, sampling, chunk=chunk) == want


def test_seeds_reproduce_and_differ(tmp_path):
    model = loaded(tmp_path, "gpt2")
    prompts = prompts_of()

    def sampled(seed, some=prompts):
        return written(model, some, Sampling(max_tokens=20, temperature=1.2, top_p=0.95, seed=seed))[0]

    assert sampled(1) == sampled(1)
    assert all(a != b for a, b in zip(sampled(1), sampled(2), strict=True))
    assert sampled(1, prompts[:2]) == sampled(1)[:2]  # fewer neighbours
    twice = sampled(1, [prompts[0], prompts[0]])
    assert twice[0] != twice[1]  # samples of one prompt differ


def test_rows_end_on_their_own_and_stay_silent(tmp_path):
    model = loaded(tmp_path)
    prompts, sampling = prompts_of(), Sampling(max_tokens=25)
    free, _ = written(model, prompts, sampling)
    end = free[1][3]
    rows, ends = written(model, prompts, sampling, eos=(end,))
    for row, whole, why in zip(rows, free, ends, strict=True):
        cut = whole.index(end) + 1 if end in whole else 25
        assert (row, why) == (whole[:cut], "eos" if end in whole else "length")
    assert "eos" in ends
    assert written(model, prompts, Sampling(max_tokens=25, ignore_eos=True), eos=(end,))[0] == free


def test_decoding_stops_when_the_last_row_has_ended(tmp_path):
    model = loaded(tmp_path)
    (free,), _ = written(model, prompts_of((9,)), Sampling(max_tokens=25))
    steps = list(decode(model, prompts_of((9,)), Sampling(max_tokens=25), eos=(free[2],)))
    assert len(steps) == free.index(free[2]) + 1


def test_a_stop_string_ends_its_row_alone_and_is_no_part_of_the_text(tmp_path):
    model = loaded(tmp_path)
    prompts, sampling = prompts_of((8, 8)), Sampling(max_tokens=10)
    free, _ = written(model, prompts, sampling)
    end = next(token for token in free[1] if token not in free[0][:4])
    stop = sampling.model_copy(update={"stop": (Letters().decode(free[0][2:4]),)})
    rows, ends, texts = {}, {}, {}
    for step in decode(model, prompts, stop, (end,), Letters()):
        for item in step:
            rows.setdefault(item.row, []).append(item.token)
            texts[item.row] = texts.get(item.row, "") + item.text
            ends[item.row] = item.finish
    assert rows[0] == free[0][:4] and texts[0] == Letters().decode(free[0][:2])
    assert texts[1] == Letters().decode(rows[1][:-1]) and rows[1][-1] == end
    assert ends == {0: "stop", 1: "eos"}
    with pytest.raises(ConfigError, match="tokenizer"):
        decode(model, prompts, stop)


def test_cache_is_reserved_once_and_the_last_token_is_not_read_back(tmp_path, monkeypatch):
    model = loaded(tmp_path)
    made, sizes, real = [], set(), FullCache.commit
    monkeypatch.setattr(FullCache, "commit", lambda cache: made.append(cache) or real(cache) or sizes.add(cache.nbytes))
    written(model, prompts_of(), Sampling(max_tokens=30))
    assert made[0].length == 30 + 29
    assert sizes == {4 * (30 + 29) * model.config.spec.cache_bytes(1, 4)}


def test_longer_than_the_context_is_refused_at_the_call(tmp_path):
    model = loaded(tmp_path)
    prompts = prompts_of((5, 60))
    with pytest.raises(CapacityError) as caught:
        decode(model, prompts, Sampling(max_tokens=5))
    message = str(caught.value)
    for part in ("prompt 1", "60 tokens", "65 in all", "context is 64", "at most 4 new tokens", "--to 65"):
        assert part in message
    with pytest.raises(CapacityError, match="shorten"):
        decode(model, prompts_of((64,)), Sampling(max_tokens=1))
    assert len(written(model, prompts_of((60,)), Sampling(max_tokens=4))[0][0]) == 4
    assert len(written(model, prompts, Sampling(max_tokens=10), beyond=True)[0][1]) == 10


def test_a_learned_position_table_cannot_be_exceeded(tmp_path):
    model = loaded(tmp_path, "gpt2")
    with pytest.raises(CapacityError, match=r"\b256\b"):
        decode(model, prompts_of((250,)), Sampling(max_tokens=10), beyond=True)
    assert len(written(model, prompts_of((250,)), Sampling(max_tokens=6))[0][0]) == 6
    assert len(written(model, prompts_of((250,)), Sampling(max_tokens=7), beyond=True)[0][0]) == 7  # never read back


def test_empty_prompts_begin_with_bos_or_are_refused(tmp_path):
    model = loaded(tmp_path)
    sampling = Sampling(max_tokens=5)
    assert written(model, [[]], sampling) == written(model, [[model.config.bos]], sampling)
    model.config = model.config.model_copy(update={"bos": None})
    with pytest.raises(DataError, match="prompt 1"):
        decode(model, [[5], []], sampling)


def test_other_refusals(tmp_path):
    model = loaded(tmp_path)
    assert list(decode(model, [], Sampling())) == []
    with pytest.raises(DataError, match=naming("97", "0 to 96")):
        decode(model, [[5, 97]], Sampling(max_tokens=5))
    with pytest.raises(ConfigError, match=naming("chunk", "0")):
        decode(model, [[5]], Sampling(max_tokens=5), chunk=0)
    with torch.no_grad():
        model.head[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match="not numbers"):
        list(decode(model, [[5]], Sampling(max_tokens=5)))


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma3_text", "gpt2"])
def test_rows_that_follow_one_reading_equal_those_that_are_read_alone(family):
    """Tails and numbers of new tokens differ; a row may be ended from outside; the reading serves again."""
    model = FORMS[family].build()
    head, *tails = prompts_of((20, 3, 1, 9), seed=4)
    requests = [
        Request([*head, *tail], Sampling(max_tokens=new), beyond=True, ends=frozenset())
        for tail, new in zip(tails, (5, 12, 7), strict=True)
    ]
    length = 64
    prefix = begin(model, length)
    prefix.read(head)
    for stopped in (None, 1):
        choosers = [Chooser(request, model, row) for row, request in enumerate(requests)]
        found = [[] for _ in requests]
        for step in follow(model, prefix.cache, choosers, prefix.declared):
            for new in step:
                found[new.row].append(new.token)
                if new.row == stopped and len(found[new.row]) == 2:
                    choosers[new.row].finish = "enough"
        for row, request in enumerate(requests):
            alone = begin(model, length)
            wanted = greedy(alone, request.prompt, request.sampling.max_tokens)
            assert found[row] == (wanted[:2] if row == stopped else wanted)


@pytest.mark.parametrize("wrong", [[1.7, 2.2], ["a"], [[5]], [None], torch.tensor([1.5]), [float("nan")]])
def test_tokens_that_are_no_whole_numbers_are_refused(wrong):
    model = FORMS["llama"].build()
    with pytest.raises(DataError, match="prompt 0 holds"):
        decode(model, [wrong], Sampling(max_tokens=2))
    assert started(model, 0, torch.tensor([5, 6])) == started(model, 0, np.array([5, 6])) == [5, 6]
