"""Compiled layers: they are the layers, they see what changes, and they stand back where they must."""

import copy
import gc
import pickle
import weakref

import pytest
import torch

from handscroll.cache.full import FullCache
from handscroll.cache.table import cache_of
from handscroll.kernels.native.calls import FEW
from handscroll.kernels.native.library import library, reason
from handscroll.kernels.registry import recording, without
from handscroll.models.gemma import Gemma, GemmaConfig
from handscroll.models.glm import GLMConfig
from handscroll.models.gpt2 import GPT2, GPT2Config
from handscroll.models.llama import Llama, LlamaConfig
from handscroll.nn.block import LAYER, LAYERS
from handscroll.nn.compiled import stack as stacking
from handscroll.nn.compiled.layer import Compiled, compiled
from handscroll.nn.marks import Marks
from handscroll.nn.quantised import quantise
from handscroll.train.lora import LoRA, add_lora

pytestmark = pytest.mark.skipif(library() is None, reason=f"no compiled kernels: {reason()}")
SIZES = {"vocab": 96, "width": 64, "layers": 2, "heads": 4, "kv_heads": 2, "head_size": 32, "mlp_width": 96}
POSITIONS = {"base": 10000.0, "scaling": {"name": "none"}, "context": 64, "trained": 64}


def llama(dtype=torch.float32, **changes) -> Llama:
    torch.manual_seed(0)
    model = Llama(LlamaConfig.parse(SIZES | {"positions": POSITIONS} | changes, "test")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.to(dtype)


@pytest.fixture
def counted(monkeypatch):
    """How often a layer went through its compiled halves, alone."""
    calls = []
    before = Compiled.before
    monkeypatch.setattr(Compiled, "before", lambda self, x, rotation: calls.append(1) or before(self, x, rotation))
    with without(LAYERS, "one call"):
        yield calls


@torch.no_grad()
def logits(model, tokens, parts=1):
    cache = model.new_cache()
    found = []
    for part in tokens.split(tokens.shape[1] // parts, dim=1):
        found.append(model(part, cache=cache, length=64).float())
    return torch.cat(found, dim=1)


def apart(model, tokens, parts=1):
    """Logits with and without the compiled halves."""
    got = logits(model, tokens, parts)
    with without(LAYER, "compiled"):
        return got, logits(model, tokens, parts)


@pytest.mark.parametrize("weights", ["", "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "changes", [{}, {"query_key_norm": True}, {"attention_bias": True, "output_bias": True, "mlp_bias": True}]
)
def test_they_are_the_layer(counted, dtype, weights, changes):
    model = llama(dtype, **changes)
    if weights:
        quantise(model, weights)
    for rows, count in ((1, 6), (2, 6), (3, 2), (2, 16), (3, 12)):
        tokens = torch.randint(0, 96, (rows, count), generator=torch.Generator().manual_seed(1))
        counted.clear()
        got, want = apart(model, tokens, parts=2)
        assert len(counted) == 4 if rows * count // 2 <= FEW else not counted
        near = 1e-5 if dtype == torch.float32 else 3e-2  # of the largest: bfloat16 rounds in another place now and then
        near = max(near, 2e-4) if weights else near  # the product of a few rows takes them in 16 bits
        assert (got - want).abs().max() <= near * want.abs().max()


def test_padding_and_windows(counted):
    model = llama(windows=(2, None))
    index = torch.tensor([[0, 1, 2], [0, 1, -1]])
    marks = Marks.of(index)
    tokens = torch.tensor([[5, 6, 7], [8, 9, 0]])
    with torch.no_grad():
        got = model(tokens, marks)
        assert len(counted) == 2
        with without(LAYER, "compiled"):
            want = model(tokens, marks)
    torch.testing.assert_close(got[index >= 0], want[index >= 0], rtol=1e-5, atol=1e-4)


@pytest.fixture
def stacked(monkeypatch):
    """How often all layers went in one call."""
    calls = []
    call = stacking._call
    monkeypatch.setattr(stacking, "_call", lambda *given: calls.append(1) or call(*given))
    return calls


def kept_in(cache):
    """All that a cache keeps, by layer and name."""
    return {(layer, name): x for layer in range(cache.layers) for name, x in cache.columns(layer).items()}


def steps(model, rows, count, start=17, capacity=0, policy="full", each=1):
    """Logits of new tokens, `each` at a time, after `start` that were read together, and the cache."""
    cache = model.new_cache(capacity, cache_of(policy))
    tokens = torch.randint(0, 96, (rows, start + count), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        if start:
            model(tokens[:, :start], cache=cache, length=64)
        found = [model(tokens[:, n : n + each], cache=cache, length=64) for n in range(start, start + count, each)]
    return torch.cat(found, dim=1).float(), cache


@pytest.mark.parametrize("policy", ["full", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    "changes", [{}, {"query_key_norm": True, "attention_bias": True}, {"windows": (4, None)}, {"layers": 1}]
)
def test_all_layers_in_one_call_are_the_layers(stacked, dtype, rows, changes, policy):
    model = llama(dtype, **changes)
    got, cache = steps(model, rows, 9, policy=policy)
    assert len(stacked) == 9 and cache.length == 26
    with without(LAYERS, "one call"):
        want, by_layer = steps(model, rows, 9, policy=policy)
    assert len(stacked) == 9
    kept, other = kept_in(cache), kept_in(by_layer)
    assert kept.keys() == other.keys()
    if "windows" in changes:  # layer by layer torch reads them under a mask
        limit = 3e-2 if dtype == torch.bfloat16 else 1e-3 if policy == "int8" else 1e-5  # int8: other roundings follow
        assert (got - want).abs().max() <= limit * want.abs().max()
    else:  # the same arithmetic in the same order
        assert torch.equal(got, want) and all(torch.equal(kept[name], other[name]) for name in kept)


@pytest.mark.parametrize("policy", ["full", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows, each, start", [(1, 2, 17), (1, 16, 17), (1, 5, 0), (4, 4, 9), (2, 3, 70), (1, 7, 600)])
def test_several_tokens_in_one_call_are_the_layers(stacked, dtype, rows, each, start, policy):
    model = llama(dtype, positions=POSITIONS | {"context": 1024, "trained": 1024}, windows=(1024, None))
    got, cache = steps(model, rows, 2 * each, start, policy=policy, each=each)
    assert len(stacked) == 2 and cache.length == start + 2 * each
    with without(LAYERS, "one call"):
        want, by_layer = steps(model, rows, 2 * each, start, policy=policy, each=each)
    assert len(stacked) == 2
    kept, other = kept_in(cache), kept_in(by_layer)
    assert kept.keys() == other.keys() and all(kept[name].shape == other[name].shape for name in kept)
    limit = 3e-2 if dtype == torch.bfloat16 else 1e-3 if policy == "int8" else 1e-5  # sums in another order
    assert (got - want).abs().max() <= limit * want.abs().max()


@pytest.mark.parametrize("policy", ["full", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows, each", [(1, 1), (3, 1), (2, 4)])
def test_what_comes_before_is_read_in_the_same_call(stacked, dtype, rows, each, policy):
    """Two spans that are only read, of 70 and 20 tokens, and the cache's own tokens after them."""
    model = llama(dtype, positions=POSITIONS | {"context": 256, "trained": 256})
    tokens = torch.randint(0, 96, (rows, 4 * each), generator=torch.Generator().manual_seed(2))
    begin = torch.randint(0, 96, (1, 90), generator=torch.Generator().manual_seed(3))
    found = []
    for others in ((), ("one call",)):
        with without(LAYERS, *others), torch.no_grad():
            cache = cache_of(policy)(2)
            model(begin[:, :70], cache=cache, length=128)
            cache = cache.branch()
            model(begin[:, 70:], cache=cache, length=128)
            cache = cache.branch(capacity=30)
            stacked.clear()
            logits = [model(part, cache=cache, length=128).float() for part in tokens.split(each, dim=1)]
            assert len(stacked) == (0 if others else 4) and cache.length == 90 + 4 * each
            found.append(torch.cat(logits, dim=1))
    got, want = found
    limit = 3e-2 if dtype == torch.bfloat16 else 1e-3 if policy == "int8" else 1e-5
    assert (got - want).abs().max() <= limit * want.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows, each, start", [(1, 1, 17), (2, 1, 60), (1, 5, 30), (1, 16, 90)])
@pytest.mark.parametrize("windows", [(None, None), (24, None)])
def test_int4_is_read_in_the_same_call(stacked, dtype, rows, each, start, windows):
    """The tokens that wait for their group are one run, the complete groups another; groups are completed meanwhile."""
    model = llama(dtype, positions=POSITIONS | {"context": 256, "trained": 256}, windows=windows)
    got, cache = steps(model, rows, 8 * each, start, policy="int4", each=each)
    assert len(stacked) == (8 if each == 1 or not any(windows) else 0) and cache.length == start + 8 * each
    with without(LAYERS, "one call"):
        want, by_layer = steps(model, rows, 8 * each, start, policy="int4", each=each)
    assert cache.nbytes == by_layer.nbytes
    assert (got - want).abs().max() <= (3e-2 if dtype == torch.bfloat16 else 1e-3) * want.abs().max()


@torch.no_grad()
def test_an_int4_cache_that_was_cut_back_is_read_as_it_is_now(stacked):
    model, found = llama(positions=POSITIONS | {"context": 256, "trained": 256}), []
    tokens = torch.randint(0, 96, (1, 110), generator=torch.Generator().manual_seed(4))
    for others in ((), ("one call",)):
        with without(LAYERS, *others):
            cache, last_ones = cache_of("int4")(2), []
            for first, last, back in ((0, 70, 70), (70, 71, 40), (40, 41, 41), (41, 66, 66), (66, 67, 67)):
                last_ones.append(model(tokens[:, first:last], cache=cache, length=128)[:, -1])
                cache.trim(back)
            found.append(torch.stack(last_ones))
    assert len(stacked) == 3
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3 * float(found[1].abs().max()))


@torch.no_grad()
def test_what_comes_before_under_windows_goes_layer_by_layer(stacked):
    model, whole = llama(windows=(16, None)), cache_of("full")(2)
    model(torch.arange(40)[None], cache=whole, length=64)
    stacked.clear()
    whole = whole.branch()
    model(torch.tensor([[3]]), cache=whole, length=64)
    assert not stacked and whole.length == 41


def test_several_tokens_under_a_window_go_layer_by_layer(stacked):
    model = llama(windows=(6, None))
    got, _ = steps(model, 1, 4, each=4)
    assert not stacked
    steps(model, 1, 4, start=0, each=4)
    assert len(stacked) == 1  # the window holds them all
    single, _ = steps(model, 1, 4)
    torch.testing.assert_close(got, single, rtol=1e-5, atol=1e-4)


def test_the_stack_sees_what_changes(stacked):
    model = llama()
    before, _ = steps(model, 1, 2)
    model.layers[1].mlp.up.weight.data = model.layers[1].mlp.up.weight.data * 2
    twice, _ = steps(model, 1, 2)
    assert not torch.equal(before, twice)
    model.layers[1].mlp.up.weight.data.div_(2)
    again, _ = steps(model, 1, 2, capacity=40)
    assert torch.equal(before, again) and len(stacked) == 6
    model.layers[0].register_forward_hook(lambda *_: None)
    steps(model, 1, 2)
    assert len(stacked) == 6


@torch.no_grad()
def test_a_layer_more_is_a_layer_more(stacked):
    model, token = copy.deepcopy(llama()), torch.tensor([[3]])
    model(token, cache=FullCache(2))
    model.layers.append(copy.deepcopy(model.layers[0]))
    model.layers[2].number = 2
    got = model(token, cache=FullCache(3))
    assert len(stacked) == 2
    with without(LAYERS, "one call"):
        torch.testing.assert_close(got, model(token, cache=FullCache(3)), rtol=1e-5, atol=1e-4)


def test_a_model_in_use_is_copied(stacked):
    model = llama()
    want, _ = steps(model, 1, 2)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(steps(again, 1, 2)[0], want)
    assert len(stacked) == 6


@torch.no_grad()
def test_a_cache_keeps_neither_outgrown_buffers_nor_a_model_that_is_gone(stacked):
    model = copy.deepcopy(llama())
    _, cache = steps(model, 1, 2)
    buffer, weight = (weakref.ref(x) for x in (cache._store[0][0], model.layers[0].mlp.up.weight))
    model(torch.zeros((1, 40), dtype=torch.int64), cache=cache, length=64)  # layer by layer, into larger ones
    assert stacked and buffer() is None
    del model
    gc.collect()
    assert weight() is None and cache.length == 59


@torch.no_grad()
def test_what_goes_layer_by_layer(stacked):
    model = llama()
    tokens = torch.tensor([[3], [4]])
    for cache in (cache_of("window:budget=64")(2), cache_of("offload")(2)):
        model(tokens, cache=cache, length=64)
    marks = Marks.of(torch.tensor([[0, 1], [0, -1]]))
    ragged = model.new_cache()
    model(torch.tensor([[3, 4], [5, 0]]), marks, ragged)
    model(tokens, Marks.of(torch.tensor([[2], [1]])), ragged)
    model(tokens)
    quantise(model)
    assert not stacked
    model(tokens, cache=model.new_cache())
    assert stacked  # rounded weights are the halves' own


def test_they_see_what_changes(counted):
    model, tokens = llama(), torch.tensor([[3, 4, 5]])
    before = logits(model, tokens)
    up = model.layers[0].mlp.up
    up.weight.data.mul_(2)  # in place
    twice = logits(model, tokens)
    assert not torch.equal(twice, before)
    up.weight.data = up.weight.data / 2  # elsewhere
    torch.testing.assert_close(logits(model, tokens), before)
    up.weight = torch.nn.Parameter(up.weight.detach() * 2)  # another parameter
    torch.testing.assert_close(logits(model, tokens), twice)
    model.layers[0].mlp.up = copy.deepcopy(up)
    model.layers[0].mlp.up.weight.data.div_(2)  # another module
    torch.testing.assert_close(logits(model, tokens), before)
    assert len(counted) == 10
    model.to(torch.bfloat16)
    got, want = apart(model, tokens)
    torch.testing.assert_close(got, want, rtol=3e-2, atol=1.0)
    assert len(counted) == 12


def test_hooks_are_called(counted):
    model, seen = llama(), []
    model(torch.tensor([[3]]))  # with gradient
    assert not counted
    logits(model, torch.tensor([[3]]))
    handle = model.layers[1].mlp.gate.register_forward_hook(lambda *_: seen.append(1))
    logits(model, torch.tensor([[3]]))
    assert seen and len(counted) == 3
    handle.remove()
    logits(model, torch.tensor([[3]]))
    assert len(counted) == 5


@torch.no_grad()
def test_they_stand_back(counted):
    tokens = torch.tensor([[3, 4]])
    logits(llama(dtype=torch.float64), tokens)
    adapted = llama()
    add_lora(adapted, LoRA(targets=("gate",)))
    logits(adapted, tokens)
    logits(llama(head_size=16), tokens)
    logits(llama(), torch.arange(FEW + 1)[None])
    scaling = {"name": "self-extend", "factor": 2.0, "original": 64, "window": 16, "group": 4}
    logits(llama(positions=POSITIONS | {"scaling": scaling, "context": 128}), tokens)
    logits(GPT2(GPT2Config(vocab=96, width=64, layers=1, heads=2, mlp_width=96, context=16)), tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        llama()(tokens)
    assert not counted
    logits(llama(), tokens)
    assert len(counted) == 2


YARN = {"name": "yarn", "factor": 4.0, "original": 64}


@pytest.mark.parametrize("family", ["glm", "glm4"])
@pytest.mark.parametrize("rotated", [16, 32])  # half of a head, which is not compiled, and all of it
@pytest.mark.parametrize("weights", ["", "int8"])
def test_layers_of_glm_4_are_taken_only_where_they_are_the_form(counted, family, rotated, weights):
    settings = SIZES | {"family": family, "rotated_size": rotated, "norm_eps": 1e-5}
    torch.manual_seed(0)
    settings |= {"positions": POSITIONS | {"scaling": YARN, "context": 256}}
    model = Llama(GLMConfig.parse(settings, "test")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    if weights:
        quantise(model, weights)
    tokens = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(1))
    want = logits(model, tokens)  # too many for the halves, and nothing cached
    assert not counted
    got = logits(model, tokens, parts=12)
    assert bool(counted) == (rotated == 32)
    assert (got - want).abs().max() <= (5e-4 if weights else 2e-5) * want.abs().max()


@pytest.mark.parametrize("family", ["glm", "glm4"])
@pytest.mark.parametrize("rotated", [16, 32])
def test_the_stack_of_glm_4_takes_whole_rotations(stacked, family, rotated):
    settings = SIZES | {"family": family, "rotated_size": rotated}
    torch.manual_seed(0)
    settings |= {"positions": POSITIONS | {"scaling": YARN, "context": 256}}
    model = Llama(GLMConfig.parse(settings, "test")).eval()
    got, cache = steps(model, 2, 5, start=3)
    assert bool(stacked) == (rotated == 32)
    tokens = torch.randint(0, 96, (2, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = model(tokens, length=64)[:, 3:]
    assert cache.length == 8 and (got - want).abs().max() <= 2e-5 * want.abs().max()


def test_nothing_is_kept_of_a_model_that_is_gone(counted):
    model = llama()
    logits(model, torch.tensor([[3]]))
    again = copy.deepcopy(model)
    torch.testing.assert_close(logits(again, torch.tensor([[3]])), logits(model, torch.tensor([[3]])))
    assert len(counted) == 6
    weight = weakref.ref(model.layers[0].mlp.up.weight)
    del model  # no collection of cycles is needed
    assert weight() is None
    again.layers[0].register_forward_hook(lambda *_, model=again: None)
    logits(again, torch.tensor([[3]]))
    weight = weakref.ref(again.layers[0].mlp.up.weight)
    del again
    gc.collect()
    assert weight() is None
    assert compiled(llama().layers[0]).refuses(torch.zeros(1, 1, 64), None)


def gemma(dtype=torch.float32, **changes) -> Gemma:
    """Gemma 3: norms of 1 + weight around both branches, a GELU gate, two rotations, windows, a scale of its own."""
    sizes = SIZES | {"layers": 3, "windows": (5, None, 5), "local_base": 100.0, "query_scalar": 20.0}
    positions = POSITIONS | {"scaling": YARN, "context": 256}
    torch.manual_seed(0)
    model = Gemma(GemmaConfig.parse(sizes | {"positions": positions} | changes, "test")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.to(dtype)


@pytest.mark.parametrize("weights", ["", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_of_gemma_are_compiled(counted, dtype, weights):
    model = gemma(dtype)
    if weights:
        quantise(model, weights)
    tokens = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(1))
    got, want = apart(model, tokens, parts=3)
    assert len(counted) == 9
    near = 5e-2 if dtype == torch.bfloat16 else 5e-4 if weights else 2e-5
    assert (got - want).abs().max() <= near * want.abs().max()


@pytest.mark.parametrize("policy", ["full", "int8"])
def test_all_layers_of_gemma_go_in_one_call(stacked, policy):
    model = gemma()
    got, _ = steps(model, 2, 9, policy=policy)
    assert len(stacked) == 9
    with without(LAYERS, "one call"), without(LAYER, "compiled"):
        want, _ = steps(model, 2, 9, policy=policy)
    assert len(stacked) == 9
    assert (got - want).abs().max() <= (1e-3 if policy == "int8" else 2e-5) * want.abs().max()


def test_capped_scores_go_layer_by_layer(stacked):
    model = gemma(score_cap=5.0, query_key_norm=False, local_base=None)
    with recording() as made:
        got, _ = steps(model, 1, 2)
    assert not stacked and "capped" in str([choice.refused for choice in made if choice.operation == LAYERS.name])
    with without(LAYER, "compiled"):
        want, _ = steps(model, 1, 2)
    assert (got - want).abs().max() <= 2e-5 * want.abs().max()


def test_a_subclass_with_another_forward_is_left_to_torch(counted):
    class Louder(type(llama().layers[0].mlp)):
        def forward(self, x):
            return 2 * super().forward(x)

    model, tokens = llama(), torch.tensor([[3, 4]])
    model.layers[0].mlp.__class__ = Louder
    logits(model, tokens)
    assert len(counted) == 1 and "Louder" in compiled(model.layers[0]).unfit
