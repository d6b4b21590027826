"""Four bits: what the int4 cache and int4 weights hold, how far they are off, what they refuse."""

import pytest
import torch

from handscroll.base.errors import ConfigError
from handscroll.cache.full import FullCache
from handscroll.cache.int4 import Int4Cache
from handscroll.cache.reading.store import Store
from handscroll.generate.prefill import prefill
from handscroll.kernels.registry import without
from handscroll.kernels.runs import FEW
from handscroll.lm import load
from handscroll.nn import attend as kernels
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Causal
from tests.conftest import ROOT
from tests.generate.material import TEXT, filled, kl
from tests.naming import naming


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def lm(tiny_folder):
    return load(tiny_folder)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def grown(cache, tokens, heads=2, size=32, chunk=100, dtype=torch.float32):
    """A cache of one layer fed with random keys and values, and these."""
    keys, values = (random(1, heads, tokens, size, seed=n).to(dtype) for n in (1, 2))
    for first in range(0, tokens, chunk):
        part = slice(first, min(first + chunk, tokens))
        marks = Marks.run(first, part.stop - first)
        cache.append(0, keys[:, :, part], values[:, :, part], marks)
        cache.commit()
    return cache, keys, values


def test_a_third_of_bfloat16(lm):
    small, _, _ = grown(Int4Cache(1, capacity=8192), 8192, size=64, dtype=torch.bfloat16)
    full, _, _ = grown(FullCache(1, capacity=8192), 8192, size=64, dtype=torch.bfloat16)
    buffers = 2 * 2 * 64 * 64 * 2
    assert small.nbytes == buffers + full.nbytes * 5 // 16


def test_int4_is_near_the_exact_cache_and_not_equal(lm):
    ids = lm.encode(TEXT)
    _, exact = filled(lm, FullCache, ids, chunk=16)
    _, rounded = filled(lm, Int4Cache, ids, chunk=16)
    assert 0 < kl(exact, rounded) < 2e-2


def test_tokens_stay_exact_until_their_group_is_complete(lm):
    ids = lm.encode(TEXT)[:40]
    for count, equal in ((31, True), (33, False)):
        caches = [filled(lm, kind, ids[:count], chunk=1)[0] for kind in (FullCache, Int4Cache)]
        logits = [lm.model(torch.tensor([ids[count : count + 1]]), cache=cache) for cache in caches]
        assert torch.allclose(*logits, atol=1e-6) is equal


def test_compiled_and_plain_attention_over_the_cache_agree():
    cache, _, _ = grown(Int4Cache(1), 333)
    new = random(1, 2, 1, 32, seed=5)
    spans = cache.append(0, new, new, Marks.run(333, 1))
    assert [span.marks.length for span in spans] == [320, 14]
    q = random(1, 6, 1, 32)
    got = kernels.attend(q, spans, Causal(), Marks.run(333, 1))
    want = kernels.attend(q, spans, Causal(), Marks.run(333, 1), 32**-0.5, "eager")
    with without(FEW, "compiled"):
        plain = kernels.attend(q, spans, Causal(), Marks.run(333, 1))
    for a, b, c in zip(got, plain, want, strict=True):
        torch.testing.assert_close(a, c, rtol=0, atol=2e-4)  # queries and weights may be rounded to 16 bits
        torch.testing.assert_close(b, c, rtol=1e-5, atol=1e-5)


def test_keys_are_rounded_within_half_a_step_of_their_channel():
    """A channel that is a hundred times larger than the others costs the others nothing."""
    cache, first = Int4Cache(1), random(1, 2, 64, 32)
    first[..., 7] *= 100
    cache.append(0, first, first, Marks.run(0, 64))
    cache.commit()
    (packed, _) = cache.append(0, first[:, :, :1], first[:, :, :1], Marks.run(64, 1))
    keys, values = packed.read(0, 64, torch.float32)
    groups = first.unflatten(2, (2, 32))
    steps = ((groups.amax(3) - groups.amin(3)) / 15).repeat_interleave(32, dim=2)
    assert bool(((keys - first).abs() <= 0.5 * steps * 1.05 + first.abs() / 256).all())
    others = [channel for channel in range(32) if channel != 7]
    assert (values - first)[..., others].abs().max() > 5 * (keys - first)[..., others].abs().max()


def test_int4_caches_are_copied_cut_and_kept_like_full_ones(lm):
    ids = lm.encode(TEXT)[:150]
    cache, _ = filled(lm, Int4Cache, ids)
    copies = [cache.clone(), cache.take_rows(torch.tensor([0]))]
    new = torch.tensor([[5, 9, 3]])
    want = lm.model(new, cache=cache, length=400)
    for copy in copies:
        torch.testing.assert_close(lm.model(new, cache=copy, length=400), want)
        copy.trim(len(ids))
        assert copy.length == len(ids)
        torch.testing.assert_close(lm.model(new, cache=copy, length=400), want)
    double = cache.take_rows(torch.tensor([0, 0]))
    torch.testing.assert_close(
        lm.model(new.expand(2, -1), cache=double), lm.model(new, cache=cache).expand(2, -1, -1), rtol=1e-4, atol=1e-4
    )


def test_cut_inside_a_group_the_rest_of_it_comes_back(lm):
    """The tokens of a broken group are no longer rounded together, but are still there."""
    ids = lm.encode(TEXT)[:150]
    cache, _ = filled(lm, Int4Cache, ids)
    cache.trim(77)
    assert cache.length == 77 and cache._stored == 64
    new = torch.tensor([ids[77:80]])
    exact, _ = filled(lm, FullCache, ids[:77])
    got, want = (lm.model(new, cache=c)[0, -1].detach() for c in (cache, exact))
    assert 0 < kl(want, got) < 2e-2
    cache.trim(0)
    torch.testing.assert_close(
        lm.model(torch.tensor([ids[:20]]), cache=cache), lm.model(torch.tensor([ids[:20]])), rtol=1e-4, atol=1e-4
    )


def test_an_aborted_forward_changes_nothing(lm):
    ids = lm.encode(TEXT)[:100]
    cache, _ = filled(lm, Int4Cache, ids)
    want = cache.clone()
    noise = random(1, 2, 64, 12)
    cache.append(0, noise, noise, Marks.run(100, 64))  # and never committed
    new = torch.tensor([[5, 9, 3]])
    torch.testing.assert_close(lm.model(new, cache=cache), lm.model(new, cache=want))


def test_rows_of_different_lengths(lm):
    """Padding may widen the range of a group, no more."""
    ids = lm.encode(TEXT)
    lengths = torch.tensor([90, 130])
    tokens = torch.tensor([ids[:90] + [0] * 40, ids[:130]])
    cache = Int4Cache(lm.model.config.layers)
    hidden = prefill(lm.model, tokens, Marks.rows(torch.zeros(2, dtype=torch.long), lengths), cache, 200, 16)
    for row, length in enumerate(lengths.tolist()):
        _, want = filled(lm, FullCache, ids[:length])
        assert kl(want, lm.model.logits(hidden)[row, -1].detach()) < 2e-2


def test_int4_weights_are_near_and_are_saved(tiny_folder, tmp_path):
    with pytest.raises(ConfigError, match="48"):  # no whole number of blocks
        load(tiny_folder, weights="int4")
    folder = ROOT / "handscroll" / "starter"
    lm, rounded, coarse = (load(folder, dtype="float32", weights=weights) for weights in ("", "int8", "int4"))
    ids = lm.encode(TEXT)[:60]
    exact = lm.logits(ids)
    apart = [sum(kl(a, b) for a, b in zip(exact, x.logits(ids), strict=True)) / 60 for x in (rounded, coarse)]
    assert apart[0] < apart[1] < 0.1
    torch.testing.assert_close(coarse.nll(ids), lm.nll(ids), rtol=0.2, atol=0.5)
    few = coarse.model(torch.tensor([ids[:3]]))
    torch.testing.assert_close(few[0], coarse.logits(ids)[:3], rtol=2e-3, atol=0.05)  # a 16-bit cache
    assert coarse.model.embedding.format.name == "int8"
    sizes = [sum(t.nbytes for t in x.model.layers.buffers()) for x in (rounded, coarse)]
    assert sizes[1] < 0.7 * sizes[0]
    assert coarse.model.dtype == torch.float32 and load(folder, "cpu", "bfloat16", "int4").model.dtype == torch.bfloat16
    assert coarse.identity(400) != rounded.identity(400) != lm.identity(400)
    coarse.save(tmp_path / "out")
    assert torch.equal(load(tmp_path / "out", "cpu", "float32").logits(ids), coarse.logits(ids))


def test_what_int4_refuses(lm, tmp_path):
    odd = random(1, 1, 32, 9)
    with pytest.raises(ConfigError, match=naming(9, "int8")):
        Int4Cache(1).append(0, odd, odd, Marks.run(0, 32))
    with pytest.raises(ConfigError, match="'int4'"):
        lm.read(TEXT, Store(tmp_path), policy="int4", beyond=True)
    with pytest.raises(ConfigError, match=naming("'block=3'", "'int4'")):
        lm.generate("import", policy="int4:block=3", max_tokens=1)
