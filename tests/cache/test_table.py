"""Every policy of the table does what the attributes of its class say."""

import pytest
import torch

from handscroll.base.errors import ConfigError
from handscroll.cache.full import FullCache
from handscroll.cache.reading.store import Store
from handscroll.cache.table import POLICIES, cache_of
from handscroll.models.llama import Llama, LlamaConfig
from handscroll.nn.marks import Marks
from tests.generate import readings
from tests.naming import naming

POSITIONS = {"base": 1e4, "scaling": {"name": "none"}, "context": 512, "trained": 512}
SIZES = {"vocab": 96, "width": 64, "layers": 2, "heads": 4, "kv_heads": 2, "head_size": 32, "mlp_width": 96}
LENGTH = 200
policies = pytest.mark.parametrize("policy", POLICIES)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Llama(LlamaConfig.parse(SIZES | {"positions": POSITIONS}, "test")).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 96, (2, LENGTH + 5), generator=torch.Generator().manual_seed(1))


def roomy(policy):
    """A policy with room for all tokens of the test."""
    return f"{policy}:budget=256" if POLICIES[policy].evicts else policy


def read(model, ids, cache, chunk=64):
    """Logits of the tokens that the cache does not hold yet."""
    return torch.cat([model(part, cache=cache) for part in ids[:, cache.length :].split(chunk, dim=1)], dim=1)


@policies
def test_a_policy_that_is_exact_or_has_room_is_the_full_cache(policy, model, ids):
    kind, cache = POLICIES[policy], cache_of(roomy(policy))(2)
    got, want = read(model, ids, cache), read(model, ids, FullCache(2))
    if kind.exact or kind.evicts:
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    elif kind.rounds:
        assert 0 < (got - want).abs().max() < 0.1
    assert cache.length == LENGTH + 5 and torch.isfinite(got).all()


@policies
def test_copies_go_on_alike(policy, model, ids):
    cache = cache_of(roomy(policy))(2)
    read(model, ids[:, :LENGTH], cache)
    copies, second = [cache.clone(), cache.take_rows(torch.tensor([0, 1]))], cache.take_rows(torch.tensor([1]))
    want = read(model, ids, cache, 1)
    for copy in copies:
        assert torch.equal(read(model, ids, copy, 1), want)
    torch.testing.assert_close(read(model, ids[1:], second, 1), want[1:], rtol=1e-4, atol=1e-4)


@policies
def test_an_aborted_forward_leaves_the_cache_as_it_was(policy, model, ids):
    cache = cache_of(roomy(policy))(2)
    read(model, ids[:, :LENGTH], cache)
    copy, key = cache.clone(), torch.randn(2, 2, 1, 32, generator=torch.Generator().manual_seed(2))
    cache.append(0, key, key, Marks.run(LENGTH, 1))  # and then nothing more
    assert cache.length == LENGTH
    assert torch.equal(read(model, ids, cache, 1), read(model, ids, copy, 1))


@pytest.mark.parametrize("policy", [name for name, kind in POLICIES.items() if kind.rewinds])
def test_a_policy_that_rewinds_equals_one_that_read_the_kept_tokens_only(policy, model, ids):
    cache, fresh = cache_of(roomy(policy))(2), cache_of(roomy(policy))(2)
    read(model, ids[:, :LENGTH], cache)
    cache.trim(LENGTH - 37)
    read(model, ids[:, : LENGTH - 37], fresh)
    torch.testing.assert_close(read(model, ids, cache), read(model, ids, fresh), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("policy", [name for name, kind in POLICIES.items() if kind.saved])
def test_a_policy_that_is_saved_goes_on_after_a_reading(policy, tiny_folder, tmp_path, monkeypatch):
    lm, store, text = readings.roomy(tiny_folder), Store(tmp_path), readings.text(300)
    want = lm.generate([*text, 7], max_tokens=8, policy=policy)
    lm.read(text, store, policy=policy)
    counted = readings.reads(lm, monkeypatch)
    assert lm.generate([*text, 7], max_tokens=8, policy=policy, store=store) == want
    assert sum(counted) < 20


@pytest.mark.parametrize("policy", [name for name, kind in POLICIES.items() if not kind.saved])
def test_a_policy_that_is_not_saved_refuses_a_reading(policy, tiny_folder, tmp_path):
    with pytest.raises(ConfigError, match=naming(policy, "full")):
        readings.roomy(tiny_folder).read(readings.text(300), Store(tmp_path), policy=roomy(policy))
