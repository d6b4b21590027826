"""Span corruption: nothing is lost, the shares are right, it resumes, packed documents do not meet, and it trains."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from handscroll.base.config import read_recipe
from handscroll.base.errors import ConfigError
from handscroll.data.batch import collate
from handscroll.data.pack import Packed
from handscroll.data.row import Row
from handscroll.data.sources import TokenSource
from handscroll.models.t5 import T5, T5Config
from handscroll.nn.noise import Noise
from handscroll.objectives.causal import Causal
from handscroll.objectives.span_corruption import Corrupted, Frame, SpanCorruption, corrupt
from handscroll.plan.choose import options
from handscroll.plan.machine import this_machine
from handscroll.plan.workloads import recipe_workloads
from handscroll.text.training import TokenizerConfig, train_tokenizer
from handscroll.train.recipe import Recipe
from handscroll.train.start import RunOptions, build_model, run_recipe
from handscroll.train.step import Memory, Step, build_strategy
from handscroll.train.strategies.certificate import certify
from handscroll.train.strategies.plain import Plain
from tests.naming import naming
from tests.resuming import resumes_to_the_same_bytes

FRAME = Frame(sentinels=tuple(range(99, 69, -1)), start=0, end=1)
RECIPE = Path(__file__).parents[2] / "recipes" / "tiny" / "t5.toml"


def undone(source: np.ndarray, target: np.ndarray) -> list[int]:
    """The text, put together from what is left and what was cut out."""
    assert source[-1] == target[-1] == FRAME.end
    cut: dict[int, list[int]] = {}
    for token in target[:-1].tolist():
        if token in FRAME.sentinels:
            cut[token] = []
        else:
            cut[next(reversed(cut))].append(token)
    assert list(cut) == list(FRAME.sentinels[: len(cut)])
    return [token for place in source[:-1].tolist() for token in cut.get(place, [place])]


@pytest.mark.parametrize("length", [2, 3, 10, 57, 200])
def test_source_and_target_are_the_text_again(length):
    text = np.arange(200, 200 + length)
    for seed in range(20):
        source, target = corrupt(text, SpanCorruption(), FRAME, np.random.default_rng(seed))
        assert undone(source, target) == text.tolist()
        cut, spans = SpanCorruption().counts(length)
        assert len(target) == cut + spans + 1 and len(source) == length - cut + spans + 1


def test_shares_and_places():
    cuts = np.zeros(200)
    for seed in range(400):
        source, _ = corrupt(np.arange(200), SpanCorruption(), FRAME, np.random.default_rng(seed))
        cuts[np.setdiff1d(np.arange(200), source[:-1][~np.isin(source[:-1], FRAME.sentinels)])] += 1
    # The sentinels 70 .. 99 are tokens of this text too: leave their places out.
    places = np.setdiff1d(np.arange(200), FRAME.sentinels)
    assert SpanCorruption().counts(200) == (30, 10)
    assert abs(cuts[places].mean() / 400 - 0.15) < 0.01
    shares = cuts[places] / 400
    assert shares[3:-3].min() > 0.09 and shares.max() < 0.23
    assert shares[[0, -1]].min() > 0.02  # only a span that begins, or ends, right there


def test_a_short_text_loses_any_part():
    ends = set()
    for seed in range(200):
        source, _ = corrupt(np.arange(200, 210), SpanCorruption(), FRAME, np.random.default_rng(seed))
        ends.add(source.tolist().index(FRAME.sentinels[0]))
    assert SpanCorruption().counts(10) == (2, 1) and ends == set(range(9))


def source_of(*lengths: int) -> TokenSource:
    random = np.random.default_rng(0)
    return TokenSource([np.append(random.integers(100, 400, length), FRAME.end) for length in lengths])


def rows(length: int = 64, seed: int = 3, **settings) -> Corrupted:
    packed = Packed(source_of(30, 90, 17, 200, 1, 55), length, seed=1, epochs=None)
    return Corrupted(packed, length, SpanCorruption(**settings), FRAME, seed)


def test_a_stream_resumes_on_the_next_row():
    stream = rows()
    states, wanted = [], []
    for (row, state), _ in zip(stream, range(12), strict=False):
        wanted.append((row.tokens.tolist(), row.source.tokens.tolist()))
        states.append(json.loads(json.dumps(state)))
    for at in (0, 5):
        got = [
            (row.tokens.tolist(), row.source.tokens.tolist())
            for (row, _), _ in zip(stream.resume(states[at]), range(6), strict=False)
        ]
        assert got == wanted[at + 1 : at + 7]
    other = next(iter(rows(seed=4)))[0]
    assert other.source.tokens.tolist() != wanted[0][1]


def test_what_is_cut_depends_on_seed_row_and_document():
    stream, other = rows(), rows(seed=4)
    text = np.arange(100, 164)
    plain = Row(text, text, 0, 0)
    twice = Row(np.tile(text[:32], 2), np.tile(text[:32], 2), 0, 0, np.repeat([0, 1], 32), np.tile(np.arange(32), 2))

    def cut(made: Corrupted, row: Row, number: int) -> list[int]:
        found = made.row(row, number)
        assert found is not None
        return found.targets.tolist()

    assert cut(stream, plain, 7) == cut(stream, plain, 7)
    assert cut(stream, plain, 7) != cut(stream, plain, 8) and cut(stream, plain, 7) != cut(other, plain, 7)
    both = cut(stream, twice, 7)
    assert len(both) % 2 == 0 and both[: len(both) // 2] != both[len(both) // 2 :]


def test_rows_keep_their_documents_apart():
    for (row, _), _ in zip(rows(), range(10), strict=False):
        assert row.source is not None
        segment = np.zeros(len(row.tokens)) if row.segment is None else row.segment
        other = np.zeros(len(row.source.tokens)) if row.source.segment is None else row.source.segment
        assert set(segment) == set(other)
        for document in set(segment):
            tokens, targets = row.tokens[segment == document], row.targets[segment == document]
            assert tokens[0] == FRAME.start and tokens[1:].tolist() == targets[:-1].tolist()
            text = undone(row.source.tokens[other == document], targets)
            assert FRAME.end not in text and len(text) >= 2


def test_too_few_sentinels_and_too_short_documents():
    with pytest.raises(ConfigError, match=naming("2000 tokens", "100 sentinels", "mean_span", "10.00")):
        rows(2000)
    assert rows(2000, mean_span=10.0)
    short = Corrupted(Packed(source_of(1, 1), 2), 2, SpanCorruption(), FRAME, 0)
    assert list(short) == []
    with pytest.raises(ConfigError, match="extra_id_0"):
        Frame.of({"a": 0}, 0, 1)
    assert Frame.of({"<extra_id_0>": 9, "<extra_id_1>": 8, "<extra_id_3>": 6}, 0, 1).sentinels == (9, 8)


def model(dtype=torch.float64, **changes) -> T5:
    torch.manual_seed(0)
    sizes = {"vocab": 400, "width": 32, "encoder_layers": 2, "layers": 2, "heads": 4, "head_size": 8, "mlp_width": 48}
    made = T5(T5Config.parse(sizes | {"start": 0, "eos": (1,)} | changes, "test")).to(dtype)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.2)
    return made


def gradients(made: T5, step: Step, batches, noise=None) -> dict[str, torch.Tensor]:
    made.zero_grad(set_to_none=True)
    loss = step(made, batches, Causal(), noise)
    return {name: p.grad.clone() for name, p in made.named_parameters()} | {"loss": loss.total}


def apart(found, wanted) -> float:
    return max(float((found[name] - wanted[name]).norm() / wanted[name].norm()) for name in wanted)


def test_packed_gradients_are_those_of_the_documents_alone():
    """Two documents in a row, and each in its own: the same sums, and every parameter gets its share."""
    made, stream = model(), rows()
    (row,) = [row for (row, _), _ in zip(stream, range(6), strict=False) if row.segment is not None][:1]
    alone = []
    for document in sorted(set(row.segment)):
        here, there = row.segment == document, row.source.segment == document
        source = Row(row.source.tokens[there], row.source.targets[there], 0, 0)
        alone.append(Row(row.tokens[here], row.targets[here], 0, 0, source=source))
    together = gradients(made, Step(Plain()), [collate([row])])
    assert apart(gradients(made, Step(Plain()), [collate([part]) for part in alone]), together) < 1e-12
    assert apart(gradients(made, Step(Plain()), [collate(alone)]), together) < 1e-12  # padded, as rows of a batch


@pytest.mark.parametrize("form", ["gated-gelu", "relu"])
def test_checkpoint_has_the_gradients_of_plain_with_dropout(form, tmp_path):
    made = model(mlp=form, tied=form == "relu", scaled=form == "relu")
    batch = collate([row for (row, _), _ in zip(rows(), range(4), strict=False)])
    noise = Noise(0.1, seed=5, update=2)
    want = gradients(made, Step(Plain()), [batch], noise)
    for memory in (Memory(strategy="checkpoint"), Memory(strategy="checkpoint", mlp_tile=20)):
        assert apart(gradients(made, Step(build_strategy(memory, made, tmp_path)), [batch], noise), want) < 1e-12
    halves = [batch.rows(0, 2), batch.rows(2, 4)]
    assert apart(gradients(made, Step(Plain()), halves, noise), want) < 1e-12
    certificate = certify(made, Memory(strategy="checkpoint"), batch, Causal(), tmp_path, noise)
    assert certificate.passed and certificate.float64 < 1e-12
    with pytest.raises(ConfigError, match="encoder"):
        build_strategy(Memory(strategy="chunk-outer"), made, tmp_path)


def test_dropout_reaches_encoder_and_decoder():
    """The strategy's loss is that of the model's own forward under the same noise; each side's dropout changes it."""
    made, noise = model(), Noise(0.2, seed=5, update=2)
    batch = collate([row for (row, _), _ in zip(rows(), range(3), strict=False)])
    assert batch.source is not None

    @torch.no_grad()
    def loss(source_noise: Noise | None, target_noise: Noise | None) -> float:
        marks, objective = batch.marks(), Causal()
        memory = made.encode(batch.source.tokens, batch.source.marks(), noise=source_noise)
        x, mask = made.embed(batch.tokens, marks), objective.mask(made, marks)
        hidden = made.run(x, made.context(x, marks, mask, noise=target_noise, memory=memory))
        return float(objective.loss(made, hidden, batch).total)

    whole = loss(noise, noise)
    assert abs(float(Step(Plain())(made, [batch], Causal(), noise).total) - whole) < 1e-9
    assert min(abs(loss(None, noise) - whole), abs(loss(noise, None) - whole)) > 1e-3


def test_mixed_precision_is_near_full_precision():
    made = model(torch.float32)
    with torch.no_grad():  # calm: large random weights make any rounding grow from layer to layer
        for parameter in made.parameters():
            parameter.mul_(0.3 if parameter.dim() > 1 else 1.0)
    batch = collate([row for (row, _), _ in zip(rows(), range(4), strict=False)])
    want = gradients(made, Step(Plain()), [batch])
    got = gradients(made, Step(Plain(), autocast=torch.bfloat16), [batch])
    for name in ("encoder.position_bias.weight", "position_bias.weight", "embedding.weight", "loss"):
        assert got[name].dtype == want[name].dtype and (got[name] - want[name]).norm() < 0.1 * want[name].norm(), name


def test_dropout_of_the_encoder_is_its_own():
    noise = Noise(0.5, seed=5, update=2)
    made, marks = model(), collate([next(iter(rows()))[0]]).marks()
    other = made.source_context(marks, noise=noise).noise
    x = torch.ones(1, marks.length, 32)
    assert not torch.equal(noise.kept(x, marks, 0), other.kept(x, marks, 0))
    sites = {0, *(layer.cross.site for layer in made.layers), *range(1, 5)}
    assert other.first_site > max(sites)


@pytest.fixture
def recipe():
    return lambda *changes: Recipe.parse(read_recipe(RECIPE, ["threads=1", *changes]), "recipe")


def test_a_run_learns_and_resumes_to_the_same_bytes(recipe, tmp_path):
    shorter = ("loop.save_every=5", "stages=[{length=64,rows=4,steps=10,mix={text=1.0}}]", "loop.evaluate_every=5")
    lm, _ = run_recipe(recipe(*shorter), tmp_path / "whole")
    records = [json.loads(line) for line in (tmp_path / "whole" / "records.jsonl").read_text().splitlines()]
    assert records[-1]["loss"] < records[0]["loss"] - 0.2
    assert records[-1]["validation_loss"] < records[4]["validation_loss"]

    again = resumes_to_the_same_bytes(recipe(*shorter), tmp_path / "whole", step=7)
    assert lm.generate("import json", max_tokens=5) == again.generate("import json", max_tokens=5)


def test_a_run_in_chunks_on_disk_with_lora(recipe, tmp_path):
    short = ("stages=[{length=64,rows=4,steps=4,mix={text=1.0}}]", "loop.evaluate_every=100", "lora={rank=2}")
    losses = []
    for name, memory in (
        ("whole", "memory={strategy='plain'}"),
        ("disk", "memory={strategy='layer-outer',offload='disk'}"),
    ):
        run_recipe(recipe(*short, memory), tmp_path / name, RunOptions(certify=True))
        losses.append(
            [json.loads(line)["loss"] for line in (tmp_path / name / "records.jsonl").read_text().split("\n")[:4]]
        )
        assert not (tmp_path / name / "adapter").exists()  # a new model: its first weights are saved nowhere
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and losses[0][-1] != losses[0][0]
    certificate = json.loads((tmp_path / "disk" / "certificate.json").read_text())
    assert certificate["passed"] and certificate["strategy"] == "layer-outer" and certificate["float64"] < 1e-12


def test_the_planner_offers_what_there_is(recipe):
    workloads = recipe_workloads(recipe())
    exact_strategies = {"plain", "checkpoint", "layer-outer"}
    assert {one.workload.strategy for one in options(workloads[0], this_machine())} == exact_strategies
    made = build_model(recipe(), train_tokenizer(["hello " * 200], TokenizerConfig(vocab=261, sentinels=4)))
    assert made.spec.parameters == sum(p.numel() for p in made.parameters())
    length = 120
    cut, spans = SpanCorruption(density=0.3, mean_span=4.0).counts(length)
    told = recipe_workloads(recipe("objective.density=0.3", "objective.mean_span=4.0", f"stages.0.length={length}"))[0]
    assert [side.length for side in told.sides] == [length - cut + spans + 1, cut + spans + 1]


def test_recipes_that_do_not_fit_are_refused(recipe, tmp_path):
    with pytest.raises(ConfigError, match="'t5'"):
        run_recipe(recipe("objective=causal"), tmp_path / "a")
    with pytest.raises(ConfigError, match="causal"):
        run_recipe(recipe("memory={strategy='chunk-outer',chunk=64}"), tmp_path / "d")
    with pytest.raises(ConfigError, match="sentinels"):
        run_recipe(recipe("tokenizer.train.sentinels=0"), tmp_path / "c")
    with pytest.raises(ConfigError, match="'text'"):
        recipe("data={text={kind='copies'}}")
    with pytest.raises(ConfigError, match="'density'"):
        recipe("objective={name='causal',density=0.3}")
