"""Every memory strategy gives the gradients of the plain step: to 1e-12 in float64, to 1e-5 in float32."""

import itertools

import pytest
import torch

from handscroll.base.errors import CapacityError, ConfigError
from handscroll.data.batch import Batch
from handscroll.kernels import gradient
from handscroll.kernels.native.library import library
from handscroll.kernels.registry import recording
from handscroll.kernels.rows import GATE, NORM
from handscroll.nn.init import initialise
from handscroll.nn.marks import Marks
from handscroll.nn.noise import Noise
from handscroll.objectives.causal import Causal
from handscroll.train.step import Memory, Step, build_strategy
from handscroll.train.strategies import stack
from handscroll.train.strategies.blocks import DiskBlocks, HostBlocks
from handscroll.train.strategies.plain import Plain
from handscroll.train.strategies.staged import Staged
from tests.conformance.families import FORMS
from tests.train.strategies.common import CPU, LLAMA, MODELS, adapted, batch, distance, gradients, llama


def strategies(folder):
    return {
        "checkpoint": Plain(recompute=True),
        "mlp tile": Plain(mlp_tile=48),
        "checkpoint, mlp tile": Plain(recompute=True, mlp_tile=37),
        "chunk-outer": Staged(64),
        "one chunk": Staged(256),
        "layer-outer": Staged(64, 1),
        "staged": Staged(64, 2, mlp_tile=20),
        "disk": Staged(64, 2, blocks=lambda: DiskBlocks(folder, CPU)),
        "disk, chunk-outer": Staged(64, 0, blocks=lambda: DiskBlocks(folder, CPU)),
        "host": Staged(64, 3, blocks=lambda: HostBlocks(CPU)),
    }


# Packed rows hold documents and padding and prove most, so that every model meets every strategy on them. On the other
# rows, and in float32, a model meets each second strategy, and two models after each other meet all.
NARROW = ("llama", "windows", "lora", "gpt2")
CASES = [(name, kind, False) for name in MODELS for kind in ("plain", "packed", "short")]
CASES += [
    pytest.param(name, kind, True, marks=pytest.mark.long) for name in MODELS for kind in ("plain", "packed", "short")
]


@pytest.mark.promise("R10")
@pytest.mark.parametrize(("name", "kind", "every"), CASES)
def test_every_strategy_gives_the_gradients_of_the_plain_step(name, kind, every, tmp_path):
    whole, half = batch(kind), (list(MODELS).index(name) + (kind == "short")) % 2
    micro = [_row(whole, 0), _row(whole, 1)]  # gradients accumulate, and rows keep their dropout
    cases = [(torch.float64, 1e-12, Noise(0.1, seed=3, update=4)), (torch.float32, 1e-5, None)]
    for dtype, limit, noise in cases[: 2 if every or (kind == "packed" and name in NARROW) else 1]:
        whole_product = every or (kind == "packed" and dtype == torch.float64)
        model = MODELS[name]()
        if name != "lora":
            initialise(model, "normal", 4, torch.Generator().manual_seed(0), std=0.1)
        model = model.to(dtype)
        want = Step(Plain())(model, [whole], Causal(0.1), noise=noise)
        wanted = gradients(model)
        for number, (label, strategy) in enumerate(strategies(tmp_path).items()):
            if not whole_product and number % 2 != half:
                continue
            batches = micro if number // 2 % 2 else [whole]
            loss = Step(strategy)(model, batches, Causal(0.1), noise=noise)
            assert loss.count == want.count
            assert float(loss.total) == pytest.approx(float(want.total), rel=limit)
            assert distance(gradients(model), wanted) <= limit, (label, dtype)
    assert not any(tmp_path.iterdir()), "offloading leaves nothing behind"


def _row(whole, row):
    marks = [None if t is None else t[row : row + 1] for t in (whole.index, whole.segment, whole.positions)]
    return Batch(whole.tokens[row : row + 1], whole.targets[row : row + 1], *marks)


def test_bfloat16_strategies_agree_to_bfloat16():
    """Autocast: casts made in the pass without gradient are not found again by the pass that needs one."""
    model = llama()
    initialise(model, "normal", 4, torch.Generator().manual_seed(0), std=0.1)
    Step(Plain())(model, [batch("plain")], Causal())
    exact = gradients(model)
    for strategy in (Plain(), Plain(mlp_tile=48), Plain(recompute=True), Staged(64), Staged(64, 1), Staged(64, 2)):
        Step(strategy, autocast=torch.bfloat16)(model, [batch("plain")], Causal())
        assert distance(gradients(model), exact) < 0.02


@pytest.mark.parametrize("count", [1, 5, 16, 40])
@pytest.mark.parametrize("form", ["wide heads", "mixtral", "up alone"])
def test_a_pass_that_is_repeated_gives_the_same_bits(form, count):
    """Of a few tokens too, which a layer would read in one call, and of the few that an expert reads.

    Where the update of `up` alone is trained, the queries of the first layer have no gradient in either pass.
    """
    sizes = {**LLAMA, "width": 64, "layers": 2, "head_size": 32}  # as compiled layers need them
    model = FORMS[form].build(torch.float32) if form in FORMS else llama(**sizes)
    model = adapted(model, "up") if form == "up alone" else model
    tokens, marks = torch.arange(count)[None], Marks.run(0, count)

    def states():
        return model.hidden(model.embed(tokens, marks), marks, model.mask(), None, count)

    with gradient.repeated():
        first = states()
    again = states()
    assert again.requires_grad and not first.requires_grad and torch.equal(first, again.detach())


@pytest.mark.parametrize("strategy", [Plain(mlp_tile=48), Staged(64), Staged(64, 1, mlp_tile=20)])
def test_a_pass_without_gradient_rounds_as_the_pass_that_repeats_it(strategy):
    """The compiled kernels have no gradient, so no pass of a step takes them; evaluation does."""
    model, between = llama(), {NORM.name, GATE.name}
    with recording() as made:
        Step(strategy)(model, [batch("plain")], Causal())
    assert not [choice for choice in made if "compiled" in choice.kernel]
    with torch.no_grad(), recording() as made:
        model(batch("plain").tokens)
    wanted = {"torch" if library() is None else "compiled"}
    assert {choice.kernel for choice in made if choice.operation in between} == wanted


def test_free_memory_is_given_back_before_the_update(monkeypatch):
    """With stages of one layer it is given back once after the chunks of each forward, and once after the backward."""
    made = []
    monkeypatch.setattr(stack, "trim", lambda: made.append("trim"))
    step = Step(Staged(64, 1))
    step(llama(layers=2), [batch("plain")], Causal(), pulse=lambda share: made.append(share))
    assert made[-2:] == ["trim", 1.0]
    assert made.count("trim") == 4  # one forward, two that store keys and values, the backward


def test_dropout_is_a_fair_draw_that_depends_on_the_token_alone():
    x = torch.ones(4, 300, 64)
    whole = batch("plain", 4, 300).marks()
    noise = Noise(0.25, seed=1, update=2)
    kept = noise.kept(x, whole, 3)
    assert kept.double().mean() == pytest.approx(0.75, abs=0.005)
    assert torch.equal(noise.kept(x[:, :50], whole.part(100, 150), 3), kept[:, 100:150])
    assert torch.equal(Noise(0.25, 1, 2, first_row=2).kept(x[:2], whole, 3), kept[2:])
    mean = noise.drop(x, whole, 3).double().mean()
    assert mean == pytest.approx(1.0, abs=0.01)
    others = [Noise(0.25, 2, 2).kept(x, whole, 3), Noise(0.25, 1, 3).kept(x, whole, 3), noise.kept(x, whole, 4)]
    for other in [*others, kept.roll(1, 0), kept.roll(1, 1), kept.roll(1, 2)]:
        # Two independent draws agree in 0.75^2 + 0.25^2 of the places.
        assert (other == kept).double().mean() == pytest.approx(0.625, abs=0.01)


def test_chunks_are_refused_where_they_would_be_wrong(tmp_path):
    class Contrastive(Causal):
        additive = False

    with pytest.raises(ConfigError, match="Contrastive"):
        Step(Staged(64))(llama(), [batch("plain")], Contrastive(additive=False))

    with pytest.raises(ConfigError, match="CPU"):
        build_strategy(Memory(strategy="layer-outer", offload="host"), llama(), tmp_path)
    with pytest.raises(CapacityError, match="write"):
        DiskBlocks(tmp_path / "missing", CPU)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"strategy": "plain", "chunk": 64}, "chunk"),
        ({"strategy": "checkpoint", "offload": "disk"}, "chunk"),
        ({"strategy": "chunk-outer", "chunk": 100}, r"\b64\b"),
        ({"strategy": "staged"}, "stage_layers"),
        ({"strategy": "chunk-outer", "stage_layers": 2}, "'staged'"),
        ({"strategy": "chunk-outer", "folder": "x"}, "offload"),
        ({"strategy": "chunked"}, "chunk-outer"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        Memory.parse(settings, "memory")


def test_a_step_can_be_given_up_between_chunks():
    seen = []
    Step(Staged(64, 2))(llama(), [batch("plain"), batch("plain")], Causal(), pulse=seen.append)
    assert seen == sorted(seen) and seen[-1] == 1.0 and len(seen) > 20
    assert all(b - a < 0.2 for a, b in itertools.pairwise(seen))
