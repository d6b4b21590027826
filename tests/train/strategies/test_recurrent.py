"""Truncated recurrence does what it says: memory without gradient, across chunks, rows and updates, and no further."""

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from handscroll.base.errors import CapacityError, CheckpointError, ConfigError
from handscroll.data.batch import Batch
from handscroll.data.lanes import Lanes
from handscroll.data.sources import TokenSource
from handscroll.data.stream import Repeat
from handscroll.data.windows import SlidingWindows
from handscroll.models.gpt2 import GPT2, GPT2Config
from handscroll.models.llama import Llama, LlamaConfig
from handscroll.nn.init import initialise
from handscroll.nn.marks import Marks
from handscroll.nn.noise import Noise
from handscroll.objectives.causal import Causal
from handscroll.train.assemble import Updates
from handscroll.train.parallel.world import World
from handscroll.train.step import Step
from handscroll.train.strategies.plain import Plain
from handscroll.train.strategies.recurrent import Recurrent
from handscroll.train.strategies.strategy import Pass
from tests.naming import naming
from tests.train.strategies.common import adapted, distance, gradients

LLAMA = {"vocab": 67, "width": 32, "layers": 3, "heads": 4, "kv_heads": 2, "head_size": 8, "mlp_width": 48}


def llama(trained=512, scaling=None, context=512, **more):
    positions = {"base": 1e4, "scaling": scaling or {"name": "none"}, "context": context, "trained": trained}
    model = Llama(LlamaConfig(**LLAMA, positions=positions, **more))
    initialise(model, "normal", 3, torch.Generator().manual_seed(0), std=0.1)
    return model.double()


MODELS = {
    "full": llama,
    "windows": lambda: llama(windows=(20, None, 90)),
    "tied": lambda: llama(tied=True, query_key_norm=True),
    "lora": lambda: adapted(llama(), "query", "value", "up").double(),
}


def text(length, seed=1, rows=1):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 67, (rows, length + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def batch(tokens, targets, *origins):
    return Batch(tokens, targets, origins=torch.tensor(origins) if origins else None)


def packed(length=200):
    """Two rows: documents of 70 tokens, the first row with padding at its end."""
    tokens, targets = text(length, rows=2)
    steps = torch.arange(length).expand(2, -1)
    index, segment, positions = steps.clone(), steps // 70, steps % 70
    targets = targets.masked_fill(positions == 69, -100)
    index[0, -30:], segment[0, -30:], targets[0, -30:] = -1, -1, -100
    return Batch(tokens, targets, index, segment, positions, torch.tensor([[3, 0], [8, 0]]))


def run(strategy, model, one, noise=None, first_row=0, autocast=None, divisor=100):
    request = Pass(Causal(), divisor, one.tokens.shape[1], autocast, noise, first_row=first_row)
    return strategy(model, one, request)


def check(model, loss, wanted, want, limit=1e-12):
    assert float(loss.total) == pytest.approx(float(want), rel=limit)
    assert distance(gradients(model), wanted) <= limit


def oracle(model, one, chunk, remembered, divisor=100, start=0):
    """Row by row and chunk by chunk, dense softmax over [memory, gradient stopped; own tokens]; no marks, no masks."""
    config, total = model.config, 0.0
    length = one.tokens.shape[1]
    groups = config.heads // config.kv_heads
    for row in range(one.tokens.shape[0]):
        segment = torch.zeros(length) if one.segment is None else one.segment[row]
        place = torch.arange(length) if one.positions is None else one.positions[row]
        memory = [None] * config.layers
        for a in range(0, length, chunk):
            b = min(a + chunk, length)
            x = model.embedding(one.tokens[row : row + 1, a:b])
            turn = model.rotations(Marks.of(place[None, a:b] + start), chunk + remembered, x)[0].turn
            for number, layer in enumerate(model.layers):
                attention, h = layer.attention, layer.attention_norm(x)
                q, k, v = (
                    part(h).unflatten(-1, (-1, config.head_size)).transpose(1, 2)
                    for part in (attention.query, attention.key, attention.value)
                )
                if config.query_key_norm:
                    q, k = attention.query_norm(q), attention.key_norm(k)
                q, k = turn(q), turn(k)
                past = memory[number]
                keys = k if past is None else torch.cat([past[0], k], dim=2)
                values = v if past is None else torch.cat([past[1], v], dim=2)
                memory[number] = [t[:, :, -remembered:].detach() for t in (keys, values)]
                queries, seen = torch.arange(a, b)[:, None], torch.arange(b - keys.shape[2], b)[None]
                allowed = (seen <= queries) & (segment[queries] == segment[seen]) & (segment[seen] >= 0)
                if config.windows and config.windows[number]:
                    allowed &= queries - seen < config.windows[number]
                scores = q @ keys.repeat_interleave(groups, 1).transpose(-1, -2) * config.head_size**-0.5
                weights = scores.masked_fill(~allowed, -1e30).softmax(-1)
                read = weights @ values.repeat_interleave(groups, 1)
                x = x + attention.output(read.transpose(1, 2).flatten(2))
                x = x + layer.mlp(layer.mlp_norm(x))
            logits = (model.norm(x) @ model.head.T)[0]
            loss = F.cross_entropy(logits, one.targets[row, a:b], ignore_index=-100, reduction="sum")
            (loss / divisor).backward()
            total += float(loss.detach())
    return total


@pytest.mark.parametrize("kind", ["plain", "packed"])
@pytest.mark.parametrize(("chunk", "remembered"), [(64, 256), (48, 31), (32, 100), (200, 1)])
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_those_of_attention_over_a_memory_without_gradient(name, chunk, remembered, kind):
    model = MODELS[name]()
    one = packed() if kind == "packed" else batch(*text(200, rows=2), (3, 0), (8, 0))
    want = oracle(model, one, chunk, remembered)
    wanted = gradients(model)
    check(model, run(Recurrent(chunk, remembered), model, one), wanted, want)
    check(model, run(Recurrent(chunk, remembered, mlp_tile=20), model, one), wanted, want)


def test_a_length_dependent_scaling_is_asked_for_the_chunk_and_its_memory():
    model = llama(64, {"name": "dynamic-ntk", "factor": 4.0, "original": 64}, context=256)
    one = batch(*text(200))
    want = oracle(model, one, 64, 96)
    wanted = gradients(model)
    check(model, run(Recurrent(64, 96), model, one), wanted, want)
    other = float(run(Plain(), model, one).total.detach())
    assert other != pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("kind", ["plain", "packed"])
@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_the_exact_one_where_the_memory_holds_the_whole_past(name, kind):
    model = MODELS[name]()
    one = packed() if kind == "packed" else batch(*text(200, rows=2), (3, 0), (8, 0))
    for noise in (None, Noise(0.2, seed=3, update=4)):
        exact = float(run(Plain(), model, one, noise).total.detach())
        wanted = gradients(model)
        loss = run(Recurrent(64, 200), model, one, noise)
        assert float(loss.total) == pytest.approx(exact, rel=1e-12)
        found = gradients(model)
        apart = max(float((found[key] - wanted[key]).abs().max()) for key in wanted)
        assert apart > 1e-6, "the gradient is truncated; were it not, the test would compare a strategy with itself"
        check(model, run(Recurrent(200, 1), model, one, noise), wanted, exact)  # one chunk: nothing is cut off


def test_rows_that_continue_each_other_equal_one_long_row():
    """Two lanes at other places of their documents, in one micro-batch or two; dropout by place in the document."""
    model, (tokens, targets) = llama(windows=(None, 70, 20)), text(288, rows=2)
    for starts in ((0, 0), (0, 96)):
        origins = [(7, starts[0]), (2, starts[1])]
        want = run(Recurrent(32, 75), model, batch(tokens, targets, *origins), Noise(0.1, 1, 1))
        wanted = gradients(model)
        strategy, total = Recurrent(32, 75), 0.0
        for a, b in itertools.pairwise((0, 96, 192, 288)):
            part = batch(tokens[:, a:b], targets[:, a:b], *((d, s + a) for d, s in origins))
            for lanes in [(0, 2)] if a == 96 else [(0, 1), (1, 2)]:
                noise = Noise(0.1, 1, 1, first_row=lanes[0])
                total += float(run(strategy, model, part.rows(*lanes), noise, first_row=lanes[0]).total)
        check(model, dataclasses.replace(want, total=torch.tensor(total, dtype=torch.float64)), wanted, want.total)


def test_positions_count_through_the_document():
    model, (tokens, targets) = llama(), text(96)
    want = oracle(model, batch(tokens, targets), 32, 64, start=70_000)
    loss = run(Recurrent(32, 64), model, batch(tokens, targets, (1, 70_000)))
    assert float(loss.total) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize(
    "origins",
    [
        [(4, 0), (5, 0)],  # another document
        [(4, 64), (9, 64)],  # another document from the place where the old one would go on
        [(1, 0), (2, 0)],  # the same document from its beginning
        [(1, 65), (2, 63)],  # the same document, but not the next token
        [(2, 64), (1, 64)],  # the next token of the other lane's document
        None,
    ],
)
def test_a_lane_that_does_not_continue_sees_nothing_of_what_it_had(origins):
    model, one = llama(), text(64, seed=2, rows=2)
    following = batch(*one, *(origins or []))
    alone = run(Recurrent(32, 64), model, following)
    wanted = gradients(model)
    strategy = Recurrent(32, 64)
    run(strategy, model, batch(*text(64, rows=2), (1, 0), (2, 0)))
    model.zero_grad(set_to_none=True)
    loss = run(strategy, model, following)
    assert torch.equal(loss.total, alone.total)
    found = gradients(model)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_rows_of_a_batch_remember_each_for_itself():
    """One lane goes on, one begins another document, one had a shorter past: each as if it were alone."""
    model, strategy = llama(), Recurrent(32, 80)
    first = batch(*text(64, rows=3), (1, 0), (2, 0), (3, 0))
    second = batch(*text(64, seed=2, rows=3), (1, 64), (9, 500), (3, 64))
    third = batch(*text(64, seed=3, rows=3), (1, 128), (9, 564), (4, 0))
    together = [float(run(strategy, model, one).total) for one in (first, second, third)]
    alone = [0.0, 0.0, 0.0]
    for row in range(3):
        strategy = Recurrent(32, 80)
        for number, one in enumerate((first, second, third)):
            alone[number] += float(run(strategy, model, one.rows(row, row + 1)).total)
    assert together == pytest.approx(alone, rel=1e-12)
    fresh = [float(run(Recurrent(32, 80), model, one).total) for one in (second, third)]
    assert fresh != pytest.approx(together[1:], rel=1e-6), "the memory matters"


def test_packed_rows_continue_with_their_first_document_and_hand_nothing_on():
    model = llama()
    tokens, targets = text(160)
    whole = batch(tokens[:, :130], targets[:, :130], (6, 0))
    want = float(run(Recurrent(32, 64), model, whole).total)
    strategy = Recurrent(32, 64)
    total = float(run(strategy, model, batch(tokens[:, :96], targets[:, :96], (6, 0))).total)
    steps = torch.arange(64)[None]
    segment = (steps >= 34).long()
    positions = torch.where(segment == 1, steps - 34, steps)
    row = Batch(tokens[:, 96:], targets[:, 96:], steps, segment, positions, torch.tensor([[6, 96]]))
    total += float(run(strategy, model, row).total)
    want += float(run(Recurrent(30, 64), model, batch(tokens[:, 130:], targets[:, 130:])).total)
    assert total == pytest.approx(want, rel=1e-12)
    assert len(strategy.state()["lanes"]) == 0, "the last document's number is not known"
    run(strategy, model, packed())
    assert len(strategy.state()["lanes"]) == 0


def updates(count):
    sizes = (300, 200, 150, 290, 70, 333)
    source = TokenSource([text(size, seed=n)[0][0].numpy() for n, size in enumerate(sizes)])
    lanes = Lanes(source, 4, lambda part: Repeat(SlidingWindows(part, 64)))
    return [one for one, _ in itertools.islice(Updates(lanes, 4, 2), count)]


def trained(model, strategy, every, autocast=None):
    """Weights after plain gradient steps of `every` update, and the losses; lanes in two micro-batches."""
    losses = []
    for number, micro in enumerate(every):
        for at, one in enumerate(micro):
            noise = Noise(0.1, 1, number, first_row=2 * at)
            losses.append(float(run(strategy, model, one.part(0, one.filled), noise, 2 * at, autocast).total))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
        model.zero_grad(set_to_none=True)
    return losses


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_a_restored_memory_goes_on_bit_for_bit(autocast, tmp_path):
    every = updates(8)
    for cut in (1, 4):
        model, strategy = llama(), Recurrent(32, 80)
        if autocast is not None:
            model = model.float()
        trained(model, strategy, every[:cut], autocast)
        save_file(strategy.state(), tmp_path / "memory.safetensors")
        assert len(strategy.state()["lanes"]) == {1: 4, 4: 3}[cut]  # the others came to their document's end
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        straight = trained(model, strategy, every[cut:], autocast)
        again = Recurrent(32, 80)
        again.restore(load_file(tmp_path / "memory.safetensors"))
        model.load_state_dict(weights)
        assert trained(model, again, every[cut:], autocast) == straight
        model.load_state_dict(weights)
        assert trained(model, Recurrent(32, 80), every[cut:], autocast) != straight, "the memory matters"
        for name, value in strategy.state().items():
            assert torch.equal(value, again.state()[name]), name


def test_an_update_that_is_given_up_leaves_the_memory_as_it_was():
    class Enough(Exception):
        pass

    def stop(done):
        if done == 1.0:
            raise Enough

    model, strategy = llama(), Recurrent(32, 80)
    first, second = updates(2)
    for at, one in enumerate(first):
        run(strategy, model, one, first_row=2 * at)
    before = {name: value.clone() for name, value in strategy.state().items()}
    run(strategy, model, second[0])
    with pytest.raises(Enough):
        strategy(model, second[1], Pass(Causal(), 1, 64, pulse=stop, first_row=2))
    assert before.keys() == strategy.state().keys() and len(before["lanes"]) == 4
    assert all(torch.equal(value, before[name]) for name, value in strategy.state().items())
    model.zero_grad(set_to_none=True)
    again, fresh = [], Recurrent(32, 80)
    fresh.restore(before)
    for used in (strategy, fresh):
        again.append([float(run(used, model, one, first_row=2 * at).total) for at, one in enumerate(second)])
    assert again[0] == again[1]


def test_bfloat16_agrees_to_bfloat16():
    model, one = llama(), batch(*text(200, rows=2), (3, 0), (8, 0))
    model = model.float()
    run(Recurrent(64, 96), model, one)
    exact = gradients(model)
    loss = run(Recurrent(64, 96), model, one, autocast=torch.bfloat16)
    check(model, loss, exact, loss.total, 0.02)


def test_a_step_by_this_strategy_has_metrics_and_pulses():
    seen = []
    one = packed()
    loss = Step(Recurrent(64, 100))(llama(), [one], Causal(by_position=True), pulse=seen.append)
    assert loss.count == one.counted == sum(number for _, number in loss.metrics.values())
    assert sum(value for value, _ in loss.metrics.values()) == pytest.approx(float(loss.total), rel=1e-12)
    assert seen == [0.25, 0.5, 0.75, 1.0]


class _Peak(TorchDispatchMode):
    """The most bytes that tensors made in this block held at once."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {key: held for key, held in self.alive.items() if not held[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return made


def test_memory_does_not_grow_with_the_row():
    peaks = {}
    for length in (256, 512, 1024):
        model, one = llama(), batch(*text(length), (0, 0))
        for name, strategy in (("recurrent", Recurrent(64, 96)), ("plain", Plain())):
            run(Recurrent(64, 96), model, one)  # gradients are allocated
            with _Peak() as measured:
                run(strategy, model, one)
            peaks[name, length] = measured.peak
    assert peaks["plain", 1024] > 3 * peaks["plain", 256]
    growth = peaks["recurrent", 1024] - peaks["recurrent", 512]
    assert growth < 0.01 * peaks["recurrent", 512], peaks


def test_refusals():
    model, one = llama(), batch(*text(64))
    learned = GPT2(GPT2Config(vocab=67, width=32, layers=2, heads=4, mlp_width=48, context=256))
    with pytest.raises(ConfigError, match=naming("gpt2", "learned")):
        run(Recurrent(32, 64), learned, one)
    with pytest.raises(CapacityError, match=naming(64, 449, 513, 512)):
        run(Recurrent(64, 449), model, one)
    run(Recurrent(64, 448), model, one)
    with pytest.raises(ConfigError, match="Contrastive"):

        class Contrastive(Causal):
            additive = False

        Recurrent(32, 64)(model, one, Pass(Contrastive(additive=False), 1, 64))
    with pytest.raises(ConfigError, match="has 2"):
        Recurrent(32, 64)(model, one, Pass(Causal(), 1, 64, world=World(size=2)))
    for settings in ((0, 64), (64, 0), (64, 64, -1)):
        with pytest.raises(ConfigError, match=naming("chunk", "remembered", 1)):
            Recurrent(*settings)
    strategy = Recurrent(32, 64)
    run(strategy, model, batch(*text(64), (1, 0)))
    with pytest.raises(CheckpointError, match=naming("64 tokens", 48)):
        Recurrent(32, 48).restore(strategy.state())
    with pytest.raises(CheckpointError, match=naming("'0.keys'")):
        Recurrent(32, 64).restore({"lanes": strategy.state()["lanes"]})
    strategy.forget()
    assert len(strategy.state()["lanes"]) == 0
    again = Recurrent(32, 64)
    again.restore(strategy.state())
