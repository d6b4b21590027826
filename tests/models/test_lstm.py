"""LSTM: one contract with the attention families, a state of constant size, exact gradients through time."""

import json

import pytest
import torch
import transformers

from handscroll.base.errors import ConfigError
from handscroll.cache.full import FullCache
from handscroll.data.batch import Batch
from handscroll.extend.methods import candidates
from handscroll.generate.draft import DraftModel, Lookup
from handscroll.generate.engine.engine import Engine
from handscroll.generate.prefill import hidden_chunks, prefill
from handscroll.generate.sample import Sampling
from handscroll.models.describe import facts
from handscroll.models.lstm import LSTM, LSTMConfig
from handscroll.models.weights import load_model, save_model
from handscroll.nn.init import initialise
from handscroll.nn.marks import Marks
from handscroll.nn.noise import Noise
from handscroll.objectives.causal import Causal
from handscroll.objectives.classify import Classify
from handscroll.train.step import Memory, Step, build_strategy
from handscroll.train.strategies.certificate import certify
from handscroll.train.strategies.plain import Plain
from tests.generate.asking import beam_search, decode


def build(layers: int = 2, width: int = 24, **more) -> LSTM:
    values = {"vocab": 61, "width": width, "layers": layers, "trained": 64, "eos": (2,)}
    model = LSTM(LSTMConfig.parse(values | more, "test"))
    initialise(model, "xavier", layers, torch.Generator().manual_seed(3))
    with torch.no_grad():
        model.embedding.weight.mul_(20.0)
    return model.eval()


def tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(3, 61, (rows, length), generator=torch.Generator().manual_seed(length))


def packed(lengths: list[int], width: int) -> Marks:
    """One row of documents and padding behind them."""
    segment = torch.full((1, width), -1)
    places = torch.zeros(1, width, dtype=torch.long)
    at = 0
    for number, size in enumerate(lengths):
        segment[0, at : at + size], places[0, at : at + size] = number, torch.arange(size)
        at += size
    return Marks.of(torch.where(segment < 0, -1, torch.arange(width)), segment, places)


@torch.no_grad()
def test_it_is_the_lstm_of_torch():
    model, ids = build(), tokens(3, 40)
    theirs = torch.nn.LSTM(24, 24, num_layers=2, batch_first=True)
    for number, layer in enumerate(model.layers):
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(theirs, f"{part}_l{number}").copy_(getattr(layer.lstm, part))
    want = theirs(model.embedding(ids))[0] @ model.embedding.weight.T
    assert (model(ids) - want).abs().max() < 1e-5


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_a_folder_of_our_own_comes_back_and_others_refuse_it(tied, tmp_path):
    model = build(tied=tied)
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert again.config == model.config
    assert torch.equal(again(tokens(2, 9)), model(tokens(2, 9)))
    with pytest.raises(ValueError, match="lstm"):
        transformers.AutoConfig.from_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"bidirectional": True}))
    with pytest.raises(ConfigError, match="'bidirectional'"):
        load_model(tmp_path)


@torch.no_grad()
def test_the_cache_is_a_state_of_constant_size_and_changes_nothing():
    model, ids = build().double(), tokens(2, 50)
    whole, cache = model(ids), model.new_cache()
    parts, sizes = [], set()
    for first, last in ((0, 17), (17, 18), (18, 49), (49, 50)):
        parts.append(model(ids[:, first:last], cache=cache))
        sizes.add(cache.nbytes)
        assert cache.length == last
    assert (torch.cat(parts, dim=1) - whole).abs().max() < 1e-12
    assert sizes == {2 * model.spec.cache_bytes(1, 8)}
    copy = cache.clone()
    new = ids[:, :1]
    assert torch.equal(model(new, cache=copy), model(new, cache=cache.clone()))
    one = model(new[:1], cache=cache.take_rows(torch.tensor([0])))
    assert (model(new, cache=cache)[:1] - one).abs().max() < 1e-12 and copy.length == 51


@torch.no_grad()
def test_a_forward_that_is_given_up_leaves_the_state():
    model, ids = build(), tokens(1, 20)
    cache = model.new_cache()
    model(ids, cache=cache)
    want = model(ids[:, :3], cache=cache.clone())
    marks = Marks.run(20, 5)
    model.layers[0](model.embed(ids[:, :5], marks), model.context(model.head, marks, model.mask(), cache=cache))
    assert torch.equal(model(ids[:, :3], cache=cache), want)


@torch.no_grad()
def test_rows_do_not_see_their_padding_and_documents_not_each_other():
    model, ids = build().double(), tokens(3, 30)
    lengths = [30, 17, 5]
    alone = [model(ids[row : row + 1, :size])[0] for row, size in enumerate(lengths)]
    marks, cache = Marks.rows(torch.zeros(3, dtype=torch.long), torch.tensor(lengths)), model.new_cache()
    last = prefill(model, ids, marks, cache, None, chunk=8)
    for row, found in enumerate(alone):
        assert (model(ids, marks)[row, : len(found)] - found).abs().max() < 1e-12
        assert (model.logits(last)[row, 0] - found[-1]).abs().max() < 1e-12
    row = torch.cat([ids[number, :size] for number, size in enumerate(lengths)])
    row = torch.cat([row, row.new_zeros(4)])[None]
    for chunk in (100, 7, 1):  # a document goes on over a chunk's edge, the next begins anew
        parts = hidden_chunks(model, row, packed(lengths, 56), model.new_cache(), None, chunk=chunk)
        together = model.logits(torch.cat([hidden for _, _, hidden in parts], dim=1))[0, :52]
        assert (together - torch.cat(alone)).abs().max() < 1e-12


def batch(rows: int = 2, width: int = 300, documents: bool = True) -> Batch:
    ids = tokens(rows, width + 1)
    if not documents:
        return Batch(ids[:, :-1], ids[:, 1:])
    marks = [packed([90, 1, 150, 40], width), packed([300], width)][:rows]
    index, segment, places = (
        torch.cat(columns) for columns in zip(*(m.tensors(ids.device) for m in marks), strict=True)
    )
    following = torch.cat([segment[:, 1:], torch.full((rows, 1), -2)], dim=1)
    targets = ids[:, 1:].masked_fill((segment != following) | (segment < 0), -100)
    return Batch(ids[:, :-1], targets, index, segment, places)


STRATEGIES = {
    "checkpoint": {"strategy": "checkpoint"},
    "chunk-outer": {"strategy": "chunk-outer", "chunk": 64},
    "layer-outer": {"strategy": "layer-outer", "chunk": 64},
    "staged": {"strategy": "staged", "chunk": 128, "stage_layers": 2},
    "disk": {"strategy": "chunk-outer", "chunk": 64, "offload": "disk"},
}


def gradients(model, step, piece, objective, noise=None):
    model.zero_grad(set_to_none=True)
    loss = step(model, [piece], objective, noise)
    return {name: p.grad.clone() for name, p in model.named_parameters()} | {"loss": loss.total}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_goes_back_through_all_of_time(strategy, tmp_path):
    """Of rows of one document each; packed ones are in tests/conformance."""
    model, piece = build(layers=3).double(), batch(documents=False)
    noise = Noise(0.2, 5, 0) if strategy == "chunk-outer" else None
    want = gradients(model, Step(Plain()), piece, Causal(), noise)
    got = gradients(
        model, Step(build_strategy(Memory(**STRATEGIES[strategy]), model, tmp_path)), piece, Causal(), noise
    )
    for name, value in want.items():
        assert (got[name] - value).norm() <= 1e-12 * value.norm(), name


def test_cut_off_gradients_would_be_seen():
    """What truncation loses is far above the tolerance of the test before: the first tokens do matter at the end."""
    model, piece = build(layers=1).double(), batch(1, 128, documents=False)
    end = Batch(piece.tokens, piece.targets.clone())
    end.targets[:, :64] = -100
    whole = gradients(model, Step(Plain()), end, Causal())["layers.0.lstm.weight_hh"]
    late = Batch(piece.tokens[:, 64:], piece.targets[:, 64:])
    assert (
        gradients(model, Step(Plain()), late, Causal())["layers.0.lstm.weight_hh"] - whole
    ).norm() > 1e-4 * whole.norm()


def test_the_certificate_is_given(tmp_path):
    memory = Memory(strategy="chunk-outer", chunk=64)
    certificate = certify(build(), memory, batch(1), Causal(), tmp_path)
    assert certificate.passed and certificate.float64 < 1e-12


def test_generation_is_greedy_on_the_whole_text_and_rows_are_alone():
    model = build()
    prompts = [[5, 9, 11, 30], [7, 8]]
    found: dict[int, list[int]] = {0: [], 1: []}
    for step in decode(model, prompts, Sampling(max_tokens=9)):
        for new in step:
            found[new.row].append(new.token)
    for row, prompt in enumerate(prompts):
        text = list(prompt)
        for token in found[row]:
            with torch.no_grad():
                assert token == int(model(torch.tensor([text]))[0, -1].argmax())
            text.append(token)
    samples = [[] for _ in range(3)]
    for step in decode(model, prompts[:1], Sampling(max_tokens=5, temperature=1.0, seed=4), samples=3):
        for new in step:
            samples[new.row].append(new.token)
    one = [step[0].token for step in decode(model, prompts[:1], Sampling(max_tokens=5, temperature=1.0, seed=4))]
    assert samples[0] == one and samples[0] != samples[1]
    best = beam_search(model, prompts[0], 1, 9, ())[0]
    assert list(best.tokens) == found[0]


def test_pooled_states_are_those_of_the_documents_alone():
    lengths, width = [9, 1, 14], 26
    for pool in ("last", "mean"):
        model = build(labels=("bad", "good"), pool=pool).double()
        marks, ids = packed(lengths, width), tokens(1, width)
        ends = torch.zeros(1, width, dtype=torch.bool)
        ends[0, torch.tensor(lengths).cumsum(0) - 1] = True
        hidden = model.hidden(model.embed(ids, marks), marks, model.mask())
        together, at = model.classify(hidden, marks, ends), 0
        for number, size in enumerate(lengths):
            here, run = ids[:, at : at + size], Marks.run(0, size)
            alone = model.hidden(model.embed(here, run), run, model.mask())[0]
            assert model.classifier is not None
            pooled = alone[-1] if pool == "last" else alone.mean(dim=0)
            assert (together[number] - model.classifier(pooled)).abs().max() < 1e-12
            at += size


def test_a_classifier_of_last_states_is_trained_in_chunks_and_one_of_means_is_not(tmp_path):
    piece = batch(1)
    targets = torch.full_like(piece.targets, -100)
    targets[0, torch.tensor([89, 90, 240, 280 - 1])] = torch.tensor([0, 1, 1, 0])
    piece = Batch(piece.tokens, targets, piece.index, piece.segment, piece.positions)
    model = build(labels=("bad", "good")).double()
    objective = Classify.of(model)
    strategy = build_strategy(Memory(strategy="chunk-outer", chunk=64), model, tmp_path)
    want, got = (gradients(model, Step(one), piece, objective) for one in (Plain(), strategy))
    for name, value in want.items():
        assert (got[name] - value).norm() <= 1e-12 * value.norm(), name
    model = build(labels=("bad", "good"), pool="mean")
    with pytest.raises(ConfigError, match="add up"):
        Step(strategy)(model, [piece], Classify.of(model))
    with pytest.raises(ConfigError, match="predicts"):
        model(piece.tokens)
    with pytest.raises(ConfigError, match="labels"):
        Classify.of(build())


def test_what_does_not_apply_to_a_state_is_refused(tmp_path):
    model, sampling = build(), Sampling(max_tokens=2)
    with pytest.raises(ConfigError, match="position"):
        candidates(model, "auto", 1 << 20)
    for policy, drafts in (("int8", None), ("full", Lookup())):
        with pytest.raises(ConfigError, match="constant"):
            decode(model, [[5]], sampling, policy=policy, drafts=drafts)
    with pytest.raises(ConfigError, match="draft"):
        DraftModel(model).check(model, 4, False)
    with pytest.raises(ConfigError, match="keys"):
        Engine(model, blocks=8)
    with pytest.raises(ConfigError, match="exact"):
        build_strategy(Memory(strategy="recurrent", chunk=64, remembered=64), model, tmp_path)
    with pytest.raises(ConfigError, match="new_cache"):
        model(tokens(1, 4), cache=FullCache(2))
    cache = model.new_cache()
    model(tokens(1, 4), cache=cache)
    with pytest.raises(ConfigError, match="cut back"):
        cache.trim(2)
    with pytest.raises(ConfigError, match="two"):
        build(labels=("one",))


def test_it_is_described_without_a_growing_cache(tmp_path):
    save_model(build(), tmp_path)
    said = dict(facts(tmp_path))
    assert said["context"] == "any length" and said["trained length"] == "64 tokens"
    assert said["state"] == "384 bytes in float32, whatever the length" and "KV cache per token" not in said
