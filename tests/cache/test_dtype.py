"""Under weights in a number format, caches, pool and readings keep keys and values in float16."""

import pytest
import torch

from handscroll.cache.reading.store import Store
from handscroll.cache.table import POLICIES, cache_of, footprint
from handscroll.generate import read as reading
from handscroll.generate.decode import decode
from handscroll.generate.engine.engine import Engine
from handscroll.generate.read import ToRead
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling
from handscroll.kernels.native.library import library, reason
from handscroll.kernels.registry import recording, without
from handscroll.models.fingerprint import identity
from handscroll.models.llama import Llama, LlamaConfig
from handscroll.models.model import Model
from handscroll.nn.block import LAYERS
from handscroll.nn.quantised import quantise

POSITIONS = {"base": 1e4, "scaling": {"name": "none"}, "context": 512, "trained": 512}
SIZES = {"vocab": 96, "width": 64, "layers": 2, "heads": 4, "kv_heads": 2, "head_size": 32, "mlp_width": 96}


def model(weights="int8", dtype=torch.float32) -> Model:
    torch.manual_seed(0)
    one = Llama(LlamaConfig.parse(SIZES | {"positions": POSITIONS}, "test")).eval().requires_grad_(False).to(dtype)
    return quantise(one, weights) if weights else one


def tokens(count):
    return torch.randint(0, 96, (1, count), generator=torch.Generator().manual_seed(1))


def test_float_weights_keep_their_dtype():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert model("", dtype).cache_dtype == dtype
    assert model("int8", torch.bfloat16).cache_dtype == torch.bfloat16
    assert model("int8").cache_dtype == torch.float16


@torch.no_grad()
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_keeps_it_and_counts_it(policy):
    one, ids = model(), tokens(200)
    kind = POLICIES[policy]
    name = f"{policy}:budget=256" if kind.evicts else policy
    cache = one.new_cache(200, cache_of(name))
    got = one(ids, cache=cache)
    wide = cache_of(name)(2, capacity=200)  # keeps float32
    want = one(ids, cache=wide)
    torch.testing.assert_close(got, want, rtol=0.02, atol=0.02)
    assert not torch.equal(got, want)
    after = one(ids[:, :1], cache=cache)  # through the cache alone
    torch.testing.assert_close(after, one(ids[:, :1], cache=wide), rtol=0.02, atol=0.02)
    if policy == "full":
        held = footprint(policy, one.config, one.cache_dtype.itemsize).held(cache.length)
        assert held == 2 * 2 * 64 * 2 * cache.length and cache.nbytes >= held
        assert cache.nbytes < footprint(policy, one.config, 4).held(cache.length) + 2 * 2 * 64 * 2 * 200


@torch.no_grad()
@pytest.mark.skipif(library() is None, reason=f"no compiled kernels: {reason()}")
def test_one_call_and_layer_by_layer_agree():
    one, ids = model(), tokens(60)
    found = []
    for others in ((), ("one call",)):
        cache = one.new_cache(64)
        with without(LAYERS, *others), recording() as made:
            found.append(torch.cat([one(part, cache=cache) for part in ids.split([57, 1, 2], dim=1)], dim=1))
        assert ("one call" in {choice.kernel for choice in made}) is (not others)
        branch = cache.branch()
        found.append(one(ids[:, :1], cache=branch))
    torch.testing.assert_close(found[0], found[2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], found[3], rtol=1e-4, atol=1e-4)


def test_decoding_engine_and_reading_say_the_same(tmp_path):
    one, ids = model(), tokens(90)[0]
    request = Request(ids.tolist(), Sampling(max_tokens=12, temperature=0))
    want = [item.token for step in decode(one, [request]) for item in step]
    engine = Engine(one, blocks=50, block=4)
    job = engine.submit(request)
    while not engine.idle:
        engine.step()
    assert job.answer == want
    about = identity(one, "tokenizer", 512)
    assert about.kept == "float16"
    store = Store(tmp_path)
    found = store.open(reading._read_into(store, one, about, ToRead(ids[:80], "here")))
    spans = found.past(one.device)["past"]
    assert {x.dtype for layer in spans for span in layer for x in (span.keys, span.values)} == {torch.float16}
    continued = Request(ids.tolist(), request.sampling, reading=found)
    assert [item.token for step in decode(one, [continued]) for item in step] == want
