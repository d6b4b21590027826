"""Several samples of a prompt that is read once, and log-probabilities beside the tokens."""

import pytest
import torch

from handscroll.base.errors import ConfigError
from handscroll.generate.sample import Sampling
from handscroll.models.model import Model
from tests.generate.asking import decode
from tests.generate.material import loaded, prompts_of, written
from tests.naming import naming

SAMPLED = Sampling(max_tokens=15, temperature=1.1, top_p=0.95, seed=4)


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gpt2"])
@pytest.mark.parametrize("policy", ["full", "int8"])
def test_samples_are_what_the_repeated_prompt_gives(family, policy, tmp_path):
    model = loaded(tmp_path, family, dtype=torch.float64 if policy == "full" else torch.float32)
    prompt = prompts_of((30,))[0]
    apart = written(model, [prompt] * 4, SAMPLED, eos=(5,), policy=policy)
    together = rows_of_samples(model, [prompt], 4, eos=(5,), policy=policy)
    assert together == apart and len({tuple(row) for row in together[0]}) == 4


def rows_of_samples(model, prompts, samples, **options):
    rows = [[] for _ in range(samples * len(prompts))]
    ends = [None] * len(rows)
    for step in decode(model, prompts, SAMPLED, samples=samples, **options):
        for item in step:
            rows[item.row].append(item.token)
            ends[item.row] = item.finish
    return rows, ends


@pytest.mark.parametrize("scaling", ["none", "dynamic"])
def test_samples_of_several_prompts_have_numbers_of_their_own(scaling, tmp_path):
    model = loaded(tmp_path, "llama", scaling, torch.float64)
    prompts = prompts_of((5, 45))
    rows, _ = rows_of_samples(model, prompts, 3)
    assert rows == written(model, [prompts[0]] * 3 + [prompts[1]] * 3, SAMPLED)[0]


def test_the_prompt_is_read_once_and_not_copied(tmp_path, monkeypatch):
    model = loaded(tmp_path)
    read, caches = [], []
    hidden = Model.__dict__.get("hidden")
    real = type(model).hidden

    def counting(self, embeddings, marks, mask, cache=None, length=None):
        read.append(embeddings.shape[:2])
        caches.append(cache)
        return real(self, embeddings, marks, mask, cache, length)

    assert hidden is not None
    monkeypatch.setattr(type(model), "hidden", counting)
    rows_of_samples(model, prompts_of((30,)), 4)
    assert read == [(1, 30)] + [(4, 1)] * 14
    # 2 kv heads of 8 numbers, keys and values, float32, 3 layers: 14 new tokens of 4 rows, and no prompt.
    assert caches[-1].nbytes == 3 * 2 * 2 * 8 * 4 * 4 * 14
    prompt = caches[0]._store[0][0].data_ptr()
    assert caches[-1].past[0][0].keys.data_ptr() == prompt


def test_logprobs_are_those_of_the_unprocessed_logits(tmp_path):
    model = loaded(tmp_path)
    prompts = prompts_of()
    sampling = Sampling(max_tokens=12, temperature=0.7, top_k=5, repetition_penalty=1.3, seed=2)
    items = [item for step in decode(model, prompts, sampling, logprobs=3) for item in step]
    for number, prompt in enumerate(prompts):
        mine = [item for item in items if item.row == number]
        tokens = [item.token for item in mine]
        with torch.no_grad():
            want = model(torch.tensor([prompt + tokens]))[0, len(prompt) - 1 : -1].double().log_softmax(-1)
        for item, row in zip(mine, want, strict=True):
            assert item.scored.logprob == pytest.approx(float(row[item.token]), abs=1e-4)
            assert [token for token, _ in item.scored.top] == row.topk(3).indices.tolist()
            assert [score for _, score in item.scored.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)


def test_logprobs_change_no_token_and_may_be_alone(tmp_path):
    model = loaded(tmp_path)
    prompts = prompts_of()
    plain = [[item[:3] for item in step] for step in decode(model, prompts, SAMPLED)]
    with_zero = list(decode(model, prompts, SAMPLED, logprobs=0))
    assert [[item[:3] for item in step] for step in with_zero] == plain
    assert all(item.scored.top == () for step in with_zero for item in step)
    assert all(item.scored is None for step in decode(model, prompts, SAMPLED) for item in step)
    everything = next(decode(model, prompts, SAMPLED, logprobs=1000))
    assert len(everything[0].scored.top) == 97


def test_impossible_numbers_are_refused(tmp_path):
    model = loaded(tmp_path)
    with pytest.raises(ConfigError, match=naming("samples", 0)):
        decode(model, [[5]], SAMPLED, samples=0)
    with pytest.raises(ConfigError, match=naming("logprobs", -1)):
        decode(model, [[5]], SAMPLED, logprobs=-1)
