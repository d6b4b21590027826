"""Layers that see a window keep the window and no more, and everything comes out as if all were kept."""

import copy
from itertools import cycle, pairwise, product

import pytest
import torch

from handscroll.base.errors import ConfigError, DataError
from handscroll.cache.full import FullCache
from handscroll.cache.pool import reach
from handscroll.cache.reading.identity import Identity
from handscroll.cache.reading.store import Store
from handscroll.cache.rolling import slots
from handscroll.cache.table import POLICIES, cache_of, footprint
from handscroll.generate import read as reading_module
from handscroll.generate.beam import Beams, beam_search
from handscroll.generate.decode import decode
from handscroll.generate.draft import DraftModel, Lookup
from handscroll.generate.engine.engine import Engine
from handscroll.generate.prefill import prefill
from handscroll.generate.read import ToRead
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling
from handscroll.models.llama import Llama, LlamaConfig
from handscroll.models.model import Model
from handscroll.nn.compiled import stack as stacking
from handscroll.nn.marks import Marks
from handscroll.train.strategies.carry import HeldCarry, Reach

POSITIONS = {"base": 1e4, "scaling": {"name": "none"}, "context": 8192, "trained": 8192}
WINDOWS = (8, None, 5, 8)
ABOUT = Identity("model", "positions", 0, "tokenizer", "float64")


def model(windows=WINDOWS, dtype=torch.float64, **sizes):
    torch.manual_seed(0)
    shape = {"vocab": 97, "width": 48, "heads": 6, "kv_heads": 2, "head_size": 8, "mlp_width": 80} | sizes
    config = LlamaConfig(family="qwen2", layers=len(windows), positions=POSITIONS, windows=windows, **shape)
    return Llama(config).to(dtype).requires_grad_(False)


def tokens(rows, count, seed=1):
    return torch.randint(0, 97, (rows, count), generator=torch.Generator().manual_seed(seed))


def in_chunks(one, ids, cache, sizes):
    """Logits (B, T, V) of rows that are read in chunks of these sizes, over and over."""
    found, first, each = [], 0, cycle(sizes)
    while first < ids.shape[1]:
        last = first + next(each)
        found.append(one(ids[:, first:last], cache=cache))
        first = last
    return torch.cat(found, dim=1)


@pytest.fixture
def everything(monkeypatch):
    """A switch: caches keep all tokens of every layer from now on."""
    return lambda: monkeypatch.setattr(Model, "windows", property(lambda self: ()))


KEEPING = [
    "full",
    "offload:block=8,recent=3",
    "retrieval:block=8,blocks=40,recent=0",
    *(f"{name}:budget=200" for name, kind in POLICIES.items() if kind.evicts),
]


@pytest.mark.parametrize("policy, sizes", [("full", [1]), *product(KEEPING, ([60, 1, 1, 30, 7], [3, 90], [150]))])
def test_logits_are_those_of_a_cache_that_keeps_everything(policy, sizes):
    one, ids = model(), tokens(2, 150)
    cache = one.new_cache(0, cache_of(policy), rewind=4)
    got = in_chunks(one, ids, cache, sizes)
    assert (got - one(ids)).abs().max() < 1e-12 and cache.length == 150
    for layer in (0, 2, 3):
        assert cache._rolling[layer].held(layer)[0].shape[2] <= slots(WINDOWS[layer], 4)


@pytest.mark.parametrize("policy", ["int8", "int4"])
def test_rounded_caches_are_those_that_round_everything(policy, everything):
    one, ids = model(), tokens(1, 130)
    got = in_chunks(one, ids, one.new_cache(0, cache_of(policy), rewind=4), [40, 40, 1, 9])
    everything()
    want = in_chunks(one, ids, one.new_cache(0, cache_of(policy)), [40, 40, 1, 9])
    limit = 1e-12 if policy == "int8" else 5e-2  # int4 keeps windows as they are
    assert (got - want).abs().max() < limit
    assert (got - one(ids)).abs().max() < 5e-2


@pytest.mark.parametrize("rewind", [0, 3])
def test_rows_of_different_lengths_keep_their_own_windows(rewind):
    one, lengths, extra = model(), torch.tensor([9, 120, 70]), tokens(3, 45, seed=2)
    ids = tokens(3, 120)
    cache = one.new_cache(0, rewind=rewind)
    hidden = prefill(one, ids, Marks.rows(torch.zeros(3, dtype=torch.int64), lengths), cache, None, 32)
    got = [one.logits(hidden)]
    for step in range(45):
        marks = Marks.of((lengths + step)[:, None])
        got.append(one(extra[:, step : step + 1], marks, cache))
    for row, length in enumerate(lengths.tolist()):
        whole = torch.cat([ids[row, :length], extra[row]])[None]
        want = one(whole)[0, length - 1 :]
        assert (torch.cat(got, dim=1)[row] - want).abs().max() < 1e-12
    assert max(cache._rolling[0].marks.length, 1) <= slots(8, rewind)
    with pytest.raises(ConfigError, match="cut back"):
        cache.trim(cache.length - 1)


def test_copies_rows_and_branches_go_on_alike():
    one, ids, new = model(), tokens(2, 80), tokens(2, 30, seed=3)
    cache = one.new_cache(rewind=4)
    one(ids, cache=cache)
    want = one(torch.cat([ids, new], dim=1))[:, 80:]
    first = cache.take_rows(torch.tensor([1]))
    for held in (cache.clone(), cache.take_rows(torch.tensor([0, 1])), cache):
        assert (in_chunks(one, new, held, [5, 20, 1]) - want).abs().max() < 1e-12
    branch = first.branch().branch()  # of a branch too
    rows = torch.cat([new[1:], new[1:]])
    got = in_chunks(one, rows, branch, [2, 9, 1])
    assert (got - want[1:]).abs().max() < 1e-12 and branch.length == 110
    again = branch.take_rows(torch.tensor([0])).branch()
    last = tokens(1, 9, seed=4)
    whole = one(torch.cat([ids[1:], new[1:], last], dim=1))[:, 110:]
    assert (in_chunks(one, last, again, [4]) - whole).abs().max() < 1e-12


def test_a_forward_that_is_given_up_changes_nothing():
    one, ids, new = model(), tokens(1, 80), tokens(1, 4, seed=3)
    for count in (1, 50):
        cache = one.new_cache(rewind=4)
        one(ids, cache=cache)
        key = torch.randn(1, 2, count, 8, dtype=torch.float64)
        for layer in range(3):  # of four
            cache.append(layer, key, key, Marks.run(80, count))
        want = one(torch.cat([ids, new], dim=1))[:, 80:]
        assert (in_chunks(one, new, cache, [1]) - want).abs().max() < 1e-12


def test_a_cache_is_cut_back_as_far_as_promised_and_no_further():
    one, ids, new = model(), tokens(1, 200), tokens(1, 20, seed=3)
    for sizes in ([200], [150, 1, 1, 1, 17, 30]):
        cache = one.new_cache(rewind=6)
        in_chunks(one, ids, cache, sizes)
        assert cache.least <= 194
        cache.trim(194)
        want = one(torch.cat([ids[:, :194], new], dim=1))[:, 194:]
        assert (in_chunks(one, new, cache, [3, 8]) - want).abs().max() < 1e-12
        with pytest.raises(ConfigError, match="dropped the tokens that come before"):
            cache.trim(cache.least - 1)
        with pytest.raises(ValueError, match="cannot trim a cache of"):
            cache.trim(cache.length + 1)
    short = one.new_cache(rewind=6)
    one(ids[:, :20], cache=short)
    short.trim(0)  # nothing has been let go
    assert (one(ids, cache=short) - one(ids)).abs().max() < 1e-12


def test_a_model_of_five_windows_to_one_holds_little_more_than_a_sixth(everything):
    one = model((64, 64, 64, 64, 64, None), torch.float32)
    held = {}
    for policy in ("full", "int8", "int4", "offload:place=host"):
        for windowed in (True, False):
            cache = cache_of(policy)(6, windows=one.windows if windowed else ())
            for first in range(0, 4096, 512):
                marks, x = Marks.run(first, 512), torch.randn(1, 2, 512, 32)
                for layer in range(6):
                    cache.append(layer, x, x, marks)
                cache.commit()
            held[policy, windowed] = cache.nbytes
        limit = 0.4 if policy == "int4" else 0.25  # its windows are not rounded, and rounding is all that it saves
        assert held[policy, True] <= limit * held[policy, False], policy
    made = footprint("full", one.config, 4)
    assert made.held(4096) == 4 * 2 * 2 * 8 * (4096 + 5 * slots(64, 64))


@pytest.mark.parametrize("policy", ["full", "int8", "int4", "window:budget=64"])
def test_the_footprint_is_what_is_held(policy):
    one, ids = model((8, None, 8, 8), torch.float32, head_size=32), tokens(1, 400)
    made = footprint(policy, one.config, 4)
    for prompt in (30, 300):
        cache = one.new_cache(prompt + 20, cache_of(policy))
        one(ids[:, :prompt], cache=cache)
        in_chunks(one, ids[:, prompt : prompt + 20], cache, [8, 1])
        assert cache.nbytes <= made.held(prompt + 20) <= 1.15 * cache.nbytes + 20000 * (policy == "int4"), prompt
        assert made.held(prompt + 20) <= made.peak(prompt, 21, 1024)


@pytest.mark.parametrize("drafts", [None, "look-up", "model"])
@pytest.mark.parametrize("policy", ["full", "int8"])
def test_text_is_that_of_a_cache_that_keeps_everything(policy, drafts, everything):
    one = model((24, None, 9, 24))
    prompt, sampling = tokens(1, 110)[0].tolist() * 2, Sampling(max_tokens=20, ignore_eos=True)

    def written():
        made = {"look-up": Lookup, "model": lambda: DraftModel(copy.deepcopy(one))}.get(drafts, lambda: None)()
        request = Request(prompt, sampling, chunk=64, policy=policy, draft=made)
        return [item.token for step in decode(one, [request]) for item in step]

    got = written()
    everything()
    assert got == written()


def test_samples_and_beams_are_those_of_a_cache_that_keeps_everything(everything):
    one, prompt = model((24, None, 9, 24)), tokens(1, 200)[0].tolist()
    sampling = Sampling(max_tokens=20, ignore_eos=True, temperature=1.0, seed=5)

    def found():
        steps = decode(one, [Request(prompt, sampling, samples=2)])
        beams = beam_search(one, Request(prompt, Sampling(max_tokens=20)), Beams(2))
        return [(item.row, item.token) for step in steps for item in step], beams

    rows, beams = found()
    everything()
    wanted, same = found()
    assert rows == wanted and [beam.tokens for beam in beams] == [beam.tokens for beam in same]


@pytest.mark.parametrize("policy", ["full", "int8"])
@torch.no_grad()
def test_all_layers_in_one_call_over_windows_that_have_moved(policy, monkeypatch):
    one = model((30, None, 12), torch.float32, width=64, heads=4, kv_heads=2, head_size=32, mlp_width=64)
    ids, calls, call = tokens(2, 190), [], stacking._call
    monkeypatch.setattr(stacking, "_call", lambda *given: calls.append(1) or call(*given))
    got = in_chunks(one, ids, one.new_cache(0, cache_of(policy), rewind=2), [100, *[1] * 90])
    if not calls:
        pytest.skip("no compiled kernels here")
    want = in_chunks(one, ids, one.new_cache(0, cache_of(policy), rewind=300), [100, *[1] * 90])  # nothing moves
    assert len(calls) == 180
    assert (got - want).abs().max() < 1e-4


@pytest.mark.parametrize("policy", ["full", "int8"])
def test_a_saved_reading_goes_on_from_the_ends_of_its_parts(policy, tmp_path, monkeypatch):
    one, ids = model((8, None, 16, 8)), tokens(1, 700)[0]
    monkeypatch.setattr(reading_module, "STRETCH", 20)  # parts of 320 tokens
    store, about = Store(tmp_path), Identity("model", "positions", 0, "tokenizer", "float64", policy)
    if policy == "int8":
        one = one.float()
        about = Identity("model", "positions", 0, "tokenizer", "float32", policy)
    number = reading_module._read_into(store, one, about, ToRead(ids, "here", policy=policy))
    assert sorted(part.length for part in store.parts()) == [320, 640, 700]
    equal = 2 * 2 * 4 * 700 * (8 * (8 if policy == "full" else 1) + (4 if policy == "int8" else 0))
    assert store.nbytes == sum(part.nbytes for part in store.parts()) < 0.55 * equal
    new, exact = tokens(1, 12, seed=3), FullCache if policy == "full" else cache_of("int8")
    for length, reached in ((700, 700), (699, 699), (640, 640), (590, 576 + 14), (500, 320), (320, 320)):
        changed = torch.cat([ids[:length], (ids[length:] + 1) % 97])  # another text from there on
        found = store.find(about, changed)
        assert found is not None and found.length == reached, length
        cache = one.new_cache(50, exact, **found.past(torch.device("cpu")))
        got = one(torch.cat([ids[reached:length], new[0]])[None], cache=cache)[:, length - reached :]
        whole = one.new_cache(0, exact)
        one(ids[None, :length], cache=whole)
        want = one(new, cache=whole)
        assert (got - want).abs().max() < (1e-12 if policy == "full" else 2e-2), length
    assert store.find(about, torch.cat([ids[:200], (ids[200:] + 1) % 97])) is None  # no part ends near enough
    with pytest.raises(DataError, match="cannot be cut to 500"):
        store.open(number).part(500)


def test_a_reading_whose_beginning_was_evicted_is_kept_whole(tmp_path):
    one, ids = model((8, None, 16, 8)), tokens(1, 300)[0]
    store = Store(tmp_path)
    first = reading_module._read_into(store, one, ABOUT, ToRead(ids[:150], "here"))
    before = store.open(first)
    cache = one.new_cache(150, **before.past(torch.device("cpu")))
    one(ids[None, 150:], cache=cache)
    store._delete(first)
    store.save(ABOUT, ids, cache, before, "here")
    found = store.find(ABOUT, ids)
    new = tokens(1, 9, seed=3)
    got = one(new, cache=one.new_cache(9, **found.past(torch.device("cpu"))))
    assert found.length == 300 and (got - one(torch.cat([ids[None], new], dim=1))[:, 300:]).abs().max() < 1e-12


def test_the_carry_of_a_windowed_layer_is_its_windows():
    """32 chunks of 128 tokens, of which a window of 16 shows 15 to the next chunk."""
    edges = list(range(0, 4097, 128))
    marks = [Marks.run(first, 128) for first in edges[:-1]]
    mine = list(pairwise(edges))
    sizes = {}
    for windows in ((16,) * 5 + (None,), ()):
        carry = HeldCarry(marks, torch.zeros(1, 4096), Reach(windows, edges, mine))
        x = torch.randn(1, 2, 128, 8)
        for chunk in range(32):
            for layer in range(6):
                carry.put(layer, chunk, x, x)
        for layer in range(6):
            for span in carry.past(layer, 31):
                keys, values = span.read(0, span.marks.length, torch.float32)
                span.accumulate(0, keys, values)
        sizes[windows] = carry.nbytes
    assert sizes[(16,) * 5 + (None,)] < 0.25 * sizes[()]
    reach = Reach((40, None), [0, 16, 32, 48, 64], [(0, 16), (16, 32), (32, 48), (48, 64)])
    assert [list(reach.seen(0, chunk)) for chunk in range(4)] == [[], [0], [0, 1], [0, 1, 2]]
    assert [list(Reach((10,), reach.edges, reach.mine).seen(0, chunk)) for chunk in range(4)] == [[], [0], [1], [2]]


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_engine_gives_back_what_left_the_windows(deterministic):
    """Blocks that were given up hold not-a-number, so whoever still read one would be found out."""
    one, shared = model((24, None, 9, 24), torch.float32), tokens(1, 150)[0].tolist()
    prompts = [shared + tokens(1, 20, seed=seed)[0].tolist() for seed in (3, 4)] + [tokens(1, 9, seed=5)[0].tolist()]
    requests = [Request(prompt, Sampling(max_tokens=12, ignore_eos=True)) for prompt in prompts]
    settings = {"block": 8, "budget": 64, "most": 2, "poison": True, "deterministic": deterministic}
    engine = Engine(one, blocks=50, **settings)
    jobs = [engine.submit(request) for request in requests]
    while not engine.idle:
        engine.step()
        assert all(len(job.held[1].blocks) <= reach(9, 8, 64) for job in jobs)
    for job, request in zip(jobs, requests, strict=True):
        assert job.answer == [item.token for step in decode(one, [request]) for item in step]
    equal = 50 * 8 * one.config.spec.cache_bytes(1, 4)
    assert engine.pool.nbytes == engine.bytes < 0.75 * equal
    assert engine.blocks.available == 50
    large = Engine(one, memory=4 * equal, **settings)  # what windows leave over is room for more of the text
    assert 4 * equal - 8 * one.config.spec.cache_bytes(1, 4) < large.bytes <= 4 * equal and large.blocks.count > 350
