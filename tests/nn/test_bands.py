"""Self-Extend and dual chunk attention, whole models against a dense forward written from the papers."""

import math

import pytest
import torch

from handscroll.base.errors import ConfigError
from handscroll.generate.prefill import hidden_chunks, prefill
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Beyond, Causal, ChunksBack, SameSegment, Window
from tests.nn.material import SELF_EXTEND, model_with

LENGTH = 200
DUAL_CHUNK = {"name": "dual-chunk", "factor": 4.0, "original": 64, "chunk": 48}


def self_extend_distance(i, j):
    """Jin et al. 2024, 3.2: exact below the window, else on grouped positions with the query moved by W - W // G."""
    near = i - j
    far = i // 6 + 20 - 20 // 6 - j // 6
    return near if near < 20 else far


def dual_chunk_distance(i, j):
    """An et al. 2024, equations 2 to 7: chunk 48, trained 64, so local window 16."""
    key = j % 48
    if i // 48 == j // 48:
        query = i % 48
    elif i // 48 - j // 48 == 1:
        query = 48 + i % 48 if i % 48 < 16 else 63
    else:
        query = 63
    return query - key


DISTANCES = {"self-extend": self_extend_distance, "dual-chunk": dual_chunk_distance, "none": lambda i, j: i - j}
SCALINGS = {"self-extend": SELF_EXTEND, "dual-chunk": DUAL_CHUNK, "none": {"name": "none"}}


def dense(model, tokens, distance, windows=(None, None, None)):
    """A Llama forward of T x T scores: complex pairs, each turned by its frequency times the distance of i and j."""
    weights, count = dict(model.named_parameters()), tokens.shape[1]
    table = torch.tensor([[distance(i, j) if j <= i else 0 for j in range(count)] for i in range(count)])
    frequencies = 500.0 ** (-torch.arange(0, 16, 2, dtype=torch.float64) / 16)
    turn = torch.polar(torch.ones(1, dtype=torch.float64), table[..., None] * frequencies)  # (T, S, E / 2)
    causal = torch.ones(count, count).tril().bool()

    def near(window):
        steps = torch.arange(count)
        return steps[:, None] - steps < (window or count)

    def norm(x, weight):
        return weight * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    def heads(x, weight):
        return (x @ weight.T).view(*x.shape[:2], -1, 16).transpose(1, 2)

    x = weights["embedding.weight"][tokens]
    for n in range(3):
        w = {name.removeprefix(f"layers.{n}."): value for name, value in weights.items() if f"layers.{n}." in name}
        a = norm(x, w["attention_norm.weight"])
        q, k, v = (heads(a, w[f"attention.{name}.weight"]) for name in ("query", "key", "value"))
        k, v = k.repeat_interleave(3, 1), v.repeat_interleave(3, 1)
        q, k = (torch.complex(t[..., :8], t[..., 8:]) for t in (q, k))
        scores = torch.einsum("bhte,tse,bhse->bhts", q, turn, k.conj()).real / 4.0
        mixed = torch.softmax(scores.masked_fill(~(causal & near(windows[n])), -math.inf), -1) @ v
        x = x + mixed.transpose(1, 2).flatten(2) @ w["attention.output.weight"].T
        m = norm(x, w["mlp_norm.weight"])
        gate = torch.nn.functional.silu(m @ w["mlp.gate.weight"].T)
        x = x + (gate * (m @ w["mlp.up.weight"].T)) @ w["mlp.down.weight"].T
    return norm(x, weights["norm.weight"]) @ weights["projection.weight"].T


def some_tokens(rows=2, length=LENGTH):
    return torch.randint(3, 97, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SCALINGS)
def test_logits_equal_the_dense_forward(name):
    model, tokens = model_with(SCALINGS[name]), some_tokens()
    with torch.no_grad():
        want = dense(model, tokens, DISTANCES[name])
        assert (model(tokens) - want).abs().max() < 2e-5  # angles are rounded to float32 as the reference rounds them
        if name != "none":
            assert (want - dense(model, tokens, DISTANCES["none"])).abs().max() > 0.1


@pytest.mark.parametrize("name", ["self-extend", "dual-chunk"])
def test_layers_may_have_windows_of_their_own(name, monkeypatch):
    monkeypatch.setattr("handscroll.nn.pieces.KEYS", 8)  # so that a window sees a part of the cache only
    windows, tokens = (5, None, 40), some_tokens()
    model = model_with(SCALINGS[name], windows=windows)
    with torch.no_grad():
        want, cache = dense(model, tokens, DISTANCES[name], windows), model.new_cache()
        assert (model(tokens) - want).abs().max() < 2e-5
        chunks = hidden_chunks(model, tokens, Marks.run(0, LENGTH), cache, None, 7)
        assert (torch.cat([model.logits(h) for _, _, h in chunks], 1) - want).abs().max() < 2e-5


@pytest.mark.parametrize("name", ["self-extend", "dual-chunk"])
@pytest.mark.parametrize("chunk", [1, 7, 64, 1024])
def test_cached_equals_uncached(name, chunk):
    for dtype, limit in ((torch.float64, 1e-11), (torch.float32, 1e-5)):
        model, tokens = model_with(SCALINGS[name], dtype), some_tokens()
        marks, cache = Marks.run(0, LENGTH), model.new_cache()
        with torch.no_grad():
            want = model(tokens)
            found = [model.logits(h) for _, _, h in hidden_chunks(model, tokens, marks, cache, None, chunk)]
        assert (torch.cat(found, 1) - want).abs().max() < limit * max(1.0, float(want.abs().max()))


@pytest.mark.parametrize("name", ["self-extend", "dual-chunk"])
def test_short_texts_read_as_before(name):
    """A text within the window (or one chunk) is the base model's."""
    length = 20 if name == "self-extend" else 48
    for dtype, limit in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        tokens = some_tokens(length=length + 1)
        with torch.no_grad():
            got, want = (model_with(SCALINGS[n], dtype)(tokens) for n in (name, "none"))
        assert (got - want)[:, :length].abs().max() < limit * want.abs().max()


def test_a_window_as_long_as_the_text_changes_nothing():
    tokens = some_tokens(length=60)
    scaling = SELF_EXTEND | {"window": 60, "group": 50}
    with torch.no_grad():
        got, want = model_with(scaling)(tokens), model_with({"name": "none"})(tokens)
    assert (got - want).abs().max() < 1e-12 * want.abs().max()


@pytest.mark.parametrize("name", ["self-extend", "dual-chunk"])
def test_padded_rows_are_those_of_each_alone_and_documents_stay_apart(name):
    model = model_with(SCALINGS[name])
    lengths = torch.tensor([150, 1, 63, 199])
    tokens = some_tokens(4, 199)
    marks = Marks.rows(torch.zeros_like(lengths), lengths)
    together = prefill(model, tokens, marks, model.new_cache(), None, 50)
    for row, count in enumerate(lengths.tolist()):
        alone = prefill(model, tokens[row : row + 1, :count], Marks.run(0, count), model.new_cache(), None)
        assert (together[row] - alone[0]).abs().max() < 1e-10
    places = torch.cat([torch.arange(90), torch.arange(109)])[None]
    packed = Marks.of(torch.arange(199)[None], (torch.arange(199) >= 90).long()[None], places)
    last = prefill(model, tokens[:1], packed, model.new_cache(), None, 70)
    alone = prefill(model, tokens[:1, 90:], Marks.run(0, 109), model.new_cache(), None)
    assert (last - alone).abs().max() < 1e-10


@pytest.mark.parametrize("name", ["self-extend", "dual-chunk"])
def test_gradients_equal_those_of_the_dense_forward(name):
    grads = []
    for oracle in (True, False):
        model, tokens = model_with(SCALINGS[name]), some_tokens(1, 130)
        logits = dense(model, tokens, DISTANCES[name]) if oracle else model(tokens)
        logits.log_softmax(-1)[0, :-1].gather(1, tokens[0, 1:, None]).mean().backward()
        grads.append({n: p.grad for n, p in model.named_parameters()})
    for parameter, want in grads[0].items():
        assert (grads[1][parameter] - want).abs().max() < 2e-5 * max(1e-3, float(want.abs().max())), parameter


def test_masks_of_the_bands_share_no_key_and_leave_none_out():
    run, cpu = Marks.run(0, 130), torch.device("cpu")
    for bands in (
        [Window(20), Beyond(20)],
        [ChunksBack(48, 0, 0), ChunksBack(48, 1, 1), ChunksBack(48, 2, None)],
    ):
        seen = torch.stack([(Causal() & SameSegment() & band).allowed(run, run, cpu)[0] for band in bands])
        assert torch.equal(seen.sum(0), torch.ones(130, 130, dtype=torch.int64).tril())
        for band in bands:  # what is decided block by block is what the pairs say
            for first in range(0, 130, 10):
                for second in range(0, 130, 10):
                    (query,), (key,) = run.extents((first, first + 10))[0], run.extents((second, second + 10))[0]
                    left = band.within(query, key)
                    pairs = band.allowed(run.part(first, first + 10), run.part(second, second + 10), cpu)
                    assert left is not True or bool(pairs.all())
                    assert left is not False or not bool(pairs.any())


def test_a_promise_that_the_groups_do_not_reach_is_refused():
    with pytest.raises(ConfigError, match="240 tokens"):
        model_with(SELF_EXTEND | {"group": 5})
    with pytest.raises(ConfigError, match="distance"):
        model_with(SELF_EXTEND | {"window": 64})
    with pytest.raises(ConfigError, match="shorter"):
        model_with(DUAL_CHUNK | {"chunk": 64})
