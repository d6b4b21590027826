"""Policies that evict: against masks, against dense scores in float64, and what they hold, copy and refuse."""

import pytest
import torch

from handscroll.base.errors import ConfigError
from handscroll.cache.evicting import EvictingCache, moved, moves
from handscroll.cache.full import FullCache
from handscroll.cache.snapkv import NEIGHBOURS, WINDOW
from handscroll.cache.table import POLICIES, cache_of
from handscroll.generate.prefill import hidden_chunks, prefill
from handscroll.models.weights import load_model
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Causal, Window
from tests.conformance.families import reference, save
from tests.masks import First
from tests.naming import naming

EVICTING = [name for name, kind in POLICIES.items() if issubclass(kind, EvictingCache)]
LENGTH = 60


def new_cache(policy, layers, **options):
    """A cache under a policy, with budgets that are too small for users."""
    return POLICIES[policy](layers, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(reference("llama"), tmp_path_factory.mktemp("evicting"))


@pytest.fixture
def model(folder):
    return load_model(folder, dtype=torch.float64)


def tokens_of(rows, length=LENGTH, seed=0):
    return torch.randint(3, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def read(model, tokens, cache, chunk):
    marks = Marks.run(0, tokens.shape[1])
    return torch.cat([model.logits(h) for _, _, h in hidden_chunks(model, tokens, marks, cache, None, chunk)], dim=1)


@torch.no_grad()
def decoded(model, tokens, cache, first):
    """Logits after each token from `first` on, read one by one."""
    return torch.cat(
        [model(tokens[:, t : t + 1], Marks.run(t, 1), cache) for t in range(first, tokens.shape[1])], dim=1
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("policy", EVICTING)
def test_with_room_for_all_a_policy_is_the_full_cache_bit_for_bit(policy, dtype, folder):
    model, tokens = load_model(folder, dtype=dtype), tokens_of(2)
    full, cache = FullCache(3), new_cache(policy, 3, budget=LENGTH)
    for some in (full, cache):
        some.expect(Marks.run(0, 40))
    assert torch.equal(read(model, tokens[:, :40], cache, 16), read(model, tokens[:, :40], full, 16))
    assert torch.equal(decoded(model, tokens, cache, 40), decoded(model, tokens, full, 40))


@pytest.mark.parametrize(
    ("policy", "budget", "mask"),
    [
        ("window", 9, Causal() & Window(10)),
        ("window", 1, Causal() & Window(2)),
        ("sinks", 12, Causal() & (Window(9) | First(4))),
        ("sinks", 5, Causal() & (Window(2) | First(4))),
    ],
)
def test_window_and_sinks_are_their_masks_exactly(policy, budget, mask, model):
    tokens, marks = tokens_of(2), Marks.run(0, LENGTH)
    with torch.no_grad():
        want = model.logits(model.hidden(model.embed(tokens, marks), marks, mask))
    got = read(model, tokens, new_cache(policy, 3, budget=budget), 1)
    assert (got - want).abs().max() < 1e-5
    assert (got - read(model, tokens, FullCache(3), 1)).abs().max() > 1e-2  # the mask matters here


def dense_weights(model, tokens, monkeypatch):
    """Softmax weights (B, H, T, S) of every layer in float64, from whole queries and keys."""
    from handscroll.nn import attention

    found, real = [], attention.attend

    def watch(q, spans, mask, marks, scale=None, **rest):
        keys = spans[0].keys.repeat_interleave(q.shape[1] // spans[0].keys.shape[1], dim=1).double()
        scores = q.double() @ keys.transpose(-1, -2) * scale
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        found.append(scores.masked_fill(~causal, -torch.inf).softmax(-1))
        return real(q, spans, mask, marks, scale=scale, **rest)

    monkeypatch.setattr(attention, "attend", watch)
    with torch.no_grad():
        model(tokens)
    monkeypatch.undo()
    return found


def kept_by(policy, weights, budget):
    """The tokens (as sets, one a row) that the formula of a policy keeps after one forward over all of them."""
    mass = weights.sum(dim=1)  # heads together: (B, T, S)
    length = mass.shape[-1]
    if policy == "tova":
        return [set(row.topk(budget).indices.tolist()) for row in mass[:, -1]]
    if policy == "h2o":
        recent, old = budget // 2, length - budget // 2
        tail = set(range(old, length))
        return [tail | set(row[:old].topk(budget - recent).indices.tolist()) for row in mass.sum(dim=1)]
    assert policy == "snapkv"
    tail, rows = set(range(length - WINDOW, length)), []
    for row in mass[:, -WINDOW:].sum(dim=1):
        wide = torch.nn.functional.pad(row, (NEIGHBOURS // 2, NEIGHBOURS // 2))
        pooled = wide.unfold(0, NEIGHBOURS, 1).mean(-1)[: length - WINDOW]
        rows.append(tail | set(pooled.topk(budget - WINDOW).indices.tolist()))
    return rows


@pytest.mark.parametrize("chunk", [60, 13, 1])
@pytest.mark.parametrize(("policy", "budget"), [("tova", 11), ("h2o", 14), ("snapkv", 40)])
def test_kept_tokens_are_those_of_the_formula(policy, budget, chunk, model, monkeypatch):
    """One forward, or chunks where nothing was evicted before the last; SnapKV evicts at the end of the prompt."""
    tokens = tokens_of(2)
    weights = dense_weights(model, tokens, monkeypatch)
    cache = new_cache(policy, 3, budget=budget)
    if policy != "snapkv" and chunk != LENGTH:
        cache.budget = LENGTH
        read(model, tokens[:, :-1], cache, chunk)
        cache.budget = budget
        decoded(model, tokens, cache, LENGTH - 1)
    else:
        read(model, tokens, cache, chunk)
    assert cache.held == budget
    for layer in range(3):
        kept = [set(row) for row in cache._kept[layer].tensors(torch.device("cpu"))[0].tolist()]
        assert kept == kept_by(policy, weights[layer], budget), layer


def test_h2o_adds_up_what_every_query_gave(model, monkeypatch):
    tokens = tokens_of(2)
    weights = dense_weights(model, tokens, monkeypatch)
    cache = new_cache("h2o", 3, budget=LENGTH)
    read(model, tokens[:, :50], cache, 7)
    decoded(model, tokens, cache, 50)
    for layer in range(3):
        torch.testing.assert_close(cache._mass[layer].double(), weights[layer].sum(dim=(1, 2)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("policy", EVICTING)
def test_rows_of_different_lengths_equal_each_alone(policy, model):
    lengths, new, budget = torch.tensor([60, 5, 47, 33]), 8, 35
    tokens, extra = tokens_of(4), tokens_of(4, new, seed=1)

    @torch.no_grad()
    def run(tokens, extra, lengths):
        cache = new_cache(policy, 3, budget=budget)
        marks = Marks.rows(torch.zeros_like(lengths), lengths)
        outs = [model.logits(prefill(model, tokens, marks, cache, None, 16))]
        for step in range(new):
            here = Marks.of((lengths + step)[:, None])
            outs.append(
                model.logits(model.hidden(model.embed(extra[:, step : step + 1], here), here, model.mask(), cache))
            )
        return torch.cat(outs, dim=1)

    together = run(tokens, extra, lengths)
    for row, count in enumerate(lengths.tolist()):
        alone = run(tokens[row : row + 1, :count], extra[row : row + 1], lengths[row : row + 1])
        assert (together[row] - alone[0]).abs().max() < 1e-5, row


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.7, 0.6])
@pytest.mark.parametrize("policy", EVICTING)
def test_bytes_are_really_freed(policy, share, dtype, folder):
    """Keys and values are exactly budget + 1 tokens from the end of the prompt on, while tokens go by."""
    model, tokens = load_model(folder, dtype=dtype), tokens_of(1)
    budget = int(share * LENGTH)
    full, cache = FullCache(3, capacity=LENGTH), new_cache(policy, 3, capacity=LENGTH, budget=budget)
    read(model, tokens, full, 16)
    read(model, tokens[:, :50], cache, 16)
    for _ in range(2):
        buffers = [t for columns in cache._store.values() for t in columns]
        assert all(t.shape[2] == budget + 1 and t.untyped_storage().nbytes() == t.nbytes for t in buffers)
        assert sum(t.nbytes for t in buffers) * LENGTH == full.nbytes * (budget + 1)
        assert cache.nbytes - sum(t.nbytes for t in buffers) <= 3 * budget * (8 + 4)
        assert cache.held == budget
        decoded(model, tokens, cache, 50)
    assert cache.length >= LENGTH


@pytest.mark.parametrize("policy", [name for name in EVICTING if name != "snapkv"])
def test_between_chunks_no_more_than_the_budget_is_held(policy, model):
    for budget, chunk in ((10, 5), (50, 15)):
        cache, tokens = new_cache(policy, 3, budget=budget), tokens_of(1)
        chunks = hidden_chunks(model, tokens, Marks.run(0, LENGTH), cache, None, chunk)
        assert max(cache._store[0][0].shape[2] for _ in chunks) == budget + 1


def test_snapkv_holds_the_prompt_until_its_end(model):
    cache, tokens = new_cache("snapkv", 3, budget=40), tokens_of(1)
    held = [cache.held for _ in hidden_chunks(model, tokens, Marks.run(0, LENGTH), cache, None, 20)]
    assert held == [20, 40, 40]


@pytest.mark.parametrize("policy", EVICTING)
def test_copies_rows_and_states_go_on_alike(policy, model):
    tokens, budget = tokens_of(2), 35
    cache = new_cache(policy, 3, budget=budget)
    read(model, tokens[:, :50], cache, 16)
    copies = [cache.clone(), cache.take_rows(torch.tensor([0, 1]))]
    second = cache.take_rows(torch.tensor([1]))
    want = decoded(model, tokens, cache, 50)
    for copy in copies:
        assert (copy.length, copy.held) == (50, budget)
        assert torch.equal(decoded(model, tokens, copy, 50), want)
        assert copy.nbytes == cache.nbytes
    assert (decoded(model, tokens[1:], second, 50)[0] - want[1]).abs().max() < 1e-6


@pytest.mark.parametrize("policy", EVICTING)
def test_an_aborted_forward_leaves_the_cache_as_it_was(policy, model):
    tokens = tokens_of(1)
    cache = new_cache(policy, 3, budget=35)
    read(model, tokens[:, :50], cache, 16)
    copy = cache.clone()
    key = torch.randn(1, 2, 1, 8, dtype=torch.float64)
    cache.append(0, key, key, Marks.run(50, 1))  # and then nothing more
    assert cache.length == 50
    assert torch.equal(decoded(model, tokens, cache, 50), decoded(model, tokens, copy, 50))


@pytest.mark.parametrize("policy", EVICTING)
def test_trim_is_exact_or_refused(policy, model):
    tokens = tokens_of(1)
    cache = new_cache(policy, 3, budget=50)
    read(model, tokens[:, :40], cache, 40)
    if policy in ("window", "sinks"):
        want = decoded(model, tokens[:, :45], cache.clone(), 40)
        decoded(model, tokens[:, :45], cache, 40)
        cache.trim(40)
        assert cache.length == 40
        assert torch.equal(decoded(model, tokens[:, :45], cache, 40), want)
    decoded(model, tokens, cache, cache.length)
    cache.trim(LENGTH)
    with pytest.raises(ConfigError, match=naming(f"'{policy}'", 60, 58)):
        cache.trim(58)


def test_moves_by_hand():
    scores = torch.tensor([[5.0, 1, 4, 2, 3], [1.0, 2, 3, 4, 5]])
    names = torch.tensor([[10, 11, 12, 13, 14], [20, 21, 22, 23, 24]])
    assert moved(names, *moves(scores, 3), 3).tolist() == [[10, 14, 12], [23, 24, 22]]


def test_refusals(model):
    with pytest.raises(ConfigError, match=naming("'h2o'", "budget")):
        new_cache("h2o", 3)
    with pytest.raises(ConfigError, match=naming(32, "'snapkv'", 33)):
        new_cache("snapkv", 3, budget=32)
    with pytest.raises(ConfigError, match=naming("'tova'", "tova:budget=4096")):
        cache_of("tova")
    with pytest.raises(ConfigError, match=naming("'sinks:budget=63'", "64 tokens")):
        cache_of("sinks:budget=63")
    with pytest.raises(ConfigError, match=naming("'budget=64'", "'int8'")):
        cache_of("int8:budget=64")
    with pytest.raises(ConfigError, match=naming("'tove'", "'tova'")):
        cache_of("tove:budget=64")
    with pytest.raises(ConfigError, match="reading"):
        filled = FullCache(3)
        read(model, tokens_of(1, 6), filled, 6)
        new_cache("window", 3, budget=5, past=filled.branch().past)
    packed = Marks.of(torch.arange(6)[None], torch.tensor([[0, 0, 0, 1, 1, 1]]))
    with pytest.raises(ConfigError, match="packed"):
        prefill(model, tokens_of(1, 6), packed, new_cache("window", 3, budget=5), None)


def simulated(policy, q, k, budget, prompt):
    """Kept tokens after every step of one row, by the papers' formulas in float64: the prompt, then one by one."""
    groups = q.shape[0] // k.shape[0]
    q, k = q.double(), k.double().repeat_interleave(groups, dim=0)
    kept, mass, history = [], {}, []
    for first, last in [(0, prompt), *((t, t + 1) for t in range(prompt, k.shape[1]))]:
        kept += range(first, last)
        mass |= dict.fromkeys(range(first, last), 0.0)
        for t in range(first, last):
            seen = [s for s in kept if s <= t]
            weights = (q[:, t : t + 1] @ k[:, seen].transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1).sum(dim=(0, 1))
            for s, weight in zip(seen, weights.tolist(), strict=True):
                if policy == "h2o" or (policy == "snapkv" and prompt - WINDOW <= t < prompt):
                    mass[s] += weight
                elif policy == "tova":
                    mass[s] = weight
        if policy == "snapkv":
            wide = [sum(mass[n] for n in around(kept, s)) / NEIGHBOURS for s in kept]
            score = {
                s: (s >= prompt - WINDOW, s if s >= prompt - WINDOW else w) for s, w in zip(kept, wide, strict=True)
            }
        elif policy == "h2o":
            score = {s: (s > last - 1 - budget // 2, mass[s]) for s in kept}
        else:
            score = {s: (False, mass[s]) for s in kept}
        kept = sorted(sorted(kept, key=score.__getitem__)[-budget:])
        history.append(list(kept))
    return history


def around(kept, s):
    """The tokens that are `s` and its kept neighbours on both sides."""
    at, reach = kept.index(s), NEIGHBOURS // 2
    return kept[max(0, at - reach) : at + reach + 1]


@pytest.mark.parametrize(("policy", "budget", "prompt"), [("h2o", 8, 12), ("tova", 6, 9), ("snapkv", 36, 50)])
def test_evictions_one_after_another_are_those_of_the_formula(policy, budget, prompt):
    from handscroll.nn.attend import attend

    stream = torch.Generator().manual_seed(3)
    q, k = (torch.randn(1, heads, 80, 16, generator=stream, dtype=torch.float64) * 1.5 for heads in (4, 2))
    cache, got = new_cache(policy, 1, budget=budget), []
    for first, last in [(0, prompt), *((t, t + 1) for t in range(prompt, 80))]:
        marks = Marks.run(first, last - first)
        spans = cache.append(0, k[:, :, first:last], k[:, :, first:last], marks)
        attend(q[:, :, first:last], spans, Causal(), marks)
        cache.commit()
        got.append(sorted(cache._kept[0].tensors(torch.device("cpu"))[0][0].tolist()))
        held = cache._store[0][0][0, :, : cache.held]  # keys lie where their marks say
        assert torch.equal(held, k[0][:, cache._kept[0].tensors(torch.device("cpu"))[0][0]])
    assert got == simulated(policy, q[0], k[0], budget, prompt)


@pytest.mark.parametrize("policy", EVICTING)
def test_rows_taken_from_a_padded_batch_go_on_alike(policy, model):
    lengths = torch.tensor([60, 40, 47])
    cache, rows = new_cache(policy, 3, budget=35), torch.tensor([2, 1])
    prefill(model, tokens_of(3), Marks.rows(torch.zeros_like(lengths), lengths), cache, None, 16)
    taken, extra = cache.take_rows(rows), tokens_of(3, 12, seed=1)
    with torch.no_grad():
        for step in range(12):
            here = Marks.of((lengths + step)[:, None])
            whole = model(extra[:, step : step + 1], here, cache)
            part = model(extra[rows, step : step + 1], here.take_rows(rows), taken)
            assert (part - whole[rows]).abs().max() < 1e-6, step


def test_scalings_of_several_rotations_go_without_scored_keys():
    from tests.nn.material import SELF_EXTEND, model_with

    model, tokens = model_with(SELF_EXTEND), tokens_of(1)
    for policy in ("h2o", "tova", "snapkv"):
        with pytest.raises(ConfigError, match="'sinks'"):
            read(model, tokens, new_cache(policy, 3, budget=40), 16)
    want = read(model, tokens, FullCache(3), 16)
    assert torch.equal(read(model, tokens, new_cache("sinks", 3, budget=LENGTH), 16), want)
    with torch.no_grad():
        marks = Marks.run(0, LENGTH)
        masked = model.hidden(model.embed(tokens, marks), marks, Causal() & (Window(37) | First(4)), length=LENGTH)
    got = read(model, tokens, new_cache("sinks", 3, budget=40), 1)
    assert (got - model.logits(masked)).abs().max() < 1e-5


def test_generation_within_a_budget_and_its_refusals(tiny_folder, tmp_path):
    from handscroll.cache.reading.store import Store
    from handscroll.lm import load

    lm, prompt, reports = load(tiny_folder), "import os\n\n\ndef walk(top):\n    for name in os.listdir(top):\n" * 4, []
    settings = {"max_tokens": 20, "beyond": True, "on_report": reports.append}
    exact = lm.generate(prompt, **settings)
    wide = len(lm.encode(prompt)) + 20
    for policy in EVICTING:
        assert lm.generate(prompt, policy=f"{policy}:budget={wide}", **settings) == exact
        lm.generate(prompt, policy=f"{policy}:budget=64", **settings)
        assert reports[-1] == f"64 of {wide - 1} tokens are held, the others were evicted"
    store = Store(tmp_path)
    with pytest.raises(ConfigError, match="'h2o:budget=64'"):
        lm.generate(prompt, policy="h2o:budget=64", store=store, **settings)
    with pytest.raises(ConfigError, match="'h2o:budget=64'"):
        lm.read(prompt, store, policy="h2o:budget=64", beyond=True)
    with pytest.raises(ConfigError, match="'h2o:budget=64'"):
        lm.continuations(prompt, 2, policy="h2o:budget=64", max_tokens=2, beyond=True)


def test_the_command_announces_what_was_evicted(tiny_folder):
    from typer.testing import CliRunner

    from handscroll.cli.main import app

    command = ["generate", str(tiny_folder), "--prompt", "import os\n" * 40, "--max-tokens", "5", "--beyond"]
    done = CliRunner().invoke(app, [*command, "--cache", "tova:budget=64"])
    assert done.exit_code == 0, done.output
    assert "approximate: --cache tova:budget=64" in done.stderr
    assert "--cache tova:budget=64: 64 of" in done.stderr
    refused = CliRunner().invoke(app, [*command, "--cache", "tova"])
    assert "budget" in str(refused.exception)
