"""The layer-outer strategy under masks that show a token later ones: the plain gradients, to 1e-12 in float64."""

import pytest
import torch

from handscroll.base.errors import ConfigError
from handscroll.data.batch import Batch
from handscroll.models.llama import Llama, LlamaConfig
from handscroll.nn.init import initialise
from handscroll.nn.mask import SameSegment
from handscroll.nn.noise import Noise
from handscroll.objectives.causal import Causal
from handscroll.objectives.masked import Masked
from handscroll.train.step import Memory, Step
from handscroll.train.strategies.blocks import DiskBlocks, HostBlocks
from handscroll.train.strategies.certificate import certify
from handscroll.train.strategies.plain import Plain
from handscroll.train.strategies.recurrent import Recurrent
from handscroll.train.strategies.staged import Staged
from tests.masks import First
from tests.train.strategies.common import CPU, adapted, bert, distance, gradients, marked


def llama():
    sizes = {"vocab": 67, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_size": 8, "mlp_width": 48}
    positions = {"base": 1e4, "scaling": {"name": "none"}, "context": 256, "trained": 256}
    model = Llama(LlamaConfig(**sizes, positions=positions))
    initialise(model, "normal", 3, torch.Generator().manual_seed(0), std=0.1)
    return model


class Prefixed(Causal):
    """The mask of a prefix language model."""

    def mask(self, model, marks):
        mask = First(90) | model.mask()
        return mask if marks.plain else mask & SameSegment()


MODELS = {
    "bert": (bert, Masked(0.1)),
    "one layer": (lambda: bert(layers=1), Masked(0.1)),
    # Nothing below the first layer's values is trained: its queries need no gradient.
    "lora": (lambda: adapted(bert(layers=2), "value"), Masked()),
    "prefix": (llama, Prefixed()),
}


def batch(kind, pairs, rows=2, length=200):
    """Hidden tokens; packed pairs of 47 tokens with kinds and labels; padding, also of whole chunks."""
    generator = torch.Generator().manual_seed(1)
    tokens, targets = (torch.randint(0, 67, (rows, length), generator=generator) for _ in range(2))
    targets[torch.rand(rows, length, generator=generator) < 0.8] = -100
    if kind == "plain":
        return Batch(tokens, targets)
    (index, segment, positions), padding = marked(kind, rows, length)
    labels = torch.where(positions == 0, segment % 2, -100).masked_fill(padding, -100)
    more = {"kinds": (positions > 20).long(), "labels": labels} if pairs else {}
    return Batch(tokens, targets.masked_fill(padding, -100), index, segment, positions, **more)


def strategies(folder):
    return {
        "chunks": Staged(64, 1),
        "one chunk": Staged(256, 1),
        "tiled": Staged(48, 1, mlp_tile=20),
        "disk": Staged(64, 1, blocks=lambda: DiskBlocks(folder, CPU)),
        "host": Staged(100, 1, blocks=lambda: HostBlocks(CPU)),
        "checkpoint": Plain(recompute=True),
    }


@pytest.mark.parametrize("kind", ["plain", "packed", "short"])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_the_plain_step(name, kind, tmp_path):
    build, objective = MODELS[name]
    data = batch(kind, pairs=name in ("bert", "one layer"))
    cases = [(torch.float64, 1e-12, Noise(0.1, seed=3, update=4)), (torch.float32, 1e-5, None)]
    for dtype, limit, noise in cases:
        model = build().to(dtype)
        want = Step(Plain())(model, [data], objective, noise=noise)
        wanted = gradients(model)
        every = strategies(tmp_path)
        for label, strategy in every.items() if noise else [("tiled", every["tiled"])]:
            loss = Step(strategy)(model, [data], objective, noise=noise)
            assert loss.count == want.count and loss.metrics.keys() == want.metrics.keys()
            assert float(loss.total) == pytest.approx(float(want.total), rel=limit)
            assert distance(gradients(model), wanted) <= limit, (label, dtype)
    assert not any(tmp_path.iterdir()), "offloading leaves nothing behind"


def test_a_packed_document_learns_nothing_from_its_neighbours(tmp_path):
    """The gradient of a row of documents is the sum of theirs in rows of their own."""
    model, whole = bert().double(), batch("packed", pairs=True, rows=1)
    Step(Staged(64, 1))(model, [whole], Masked())
    wanted = gradients(model)
    for first in range(0, 170, 47):
        part = whole.part(first, min(first + 47, 170))
        marks = {name: getattr(part, name) - getattr(part, name)[:, :1] for name in ("index", "segment")}
        alone = Batch(
            part.tokens, part.targets, **marks, positions=part.positions, kinds=part.kinds, labels=part.labels
        )
        Step(Plain())(model, [alone], Masked(pair_share=0.15 * 200 / part.tokens.shape[1]))
        found = gradients(model)
        scale = alone.counted / whole.counted
        wanted = {name: value - scale * found.get(name, 0) for name, value in wanted.items()}
    assert max(float(value.abs().max()) for value in wanted.values()) < 1e-10


def test_a_few_tokens_read_the_keys_of_all_chunks():
    """The last chunk has as few tokens as `nn/compiled/layer.py` takes, and must not keep its keys."""
    sizes = {"vocab": 67, "width": 64, "layers": 2, "heads": 2, "kv_heads": 1, "head_size": 32, "mlp_width": 64}
    positions = {"base": 1e4, "scaling": {"name": "none"}, "context": 256, "trained": 256}
    model, data = Llama(LlamaConfig(**sizes, positions=positions)), batch("plain", False, rows=1, length=132)
    initialise(model, "normal", 2, torch.Generator().manual_seed(0), std=0.1)
    want = Step(Plain())(model, [data], Prefixed())
    wanted = gradients(model)
    loss = Step(Staged(64, 1))(model, [data], Prefixed())
    assert float(loss.total) == pytest.approx(float(want.total), rel=1e-5)
    assert distance(gradients(model), wanted) <= 1e-5


def test_bfloat16_agrees_to_bfloat16():
    model = bert()
    Step(Plain())(model, [batch("packed", True)], Masked())
    exact = gradients(model)
    Step(Staged(64, 1), autocast=torch.bfloat16)(model, [batch("packed", True)], Masked())
    assert distance(gradients(model), exact) < 0.03


def test_the_certificate_covers_encoders(tmp_path):
    memory = Memory(strategy="layer-outer", chunk=128, mlp_tile=64)
    noise = Noise(0.1, seed=1, update=0)
    certificate = certify(bert(context=320), memory, batch("packed", True, 1, 320), Masked(), tmp_path, noise)
    assert certificate.passed and certificate.float64 < 1e-12 and certificate.tokens == 288


def test_a_step_can_be_given_up_between_chunks():
    seen = []
    Step(Staged(64, 1))(bert(), [batch("plain", False)], Masked(), pulse=seen.append)
    assert seen == sorted(seen) and seen[-1] == 1.0 and len(seen) > 15 and seen[-2] < 1.0


def test_stages_of_several_layers_are_refused():
    for strategy in (Staged(64), Staged(64, 2)):
        with pytest.raises(ConfigError, match="layer"):
            Step(strategy)(bert(), [batch("plain", False)], Masked())
    with pytest.raises(ConfigError, match="chunks"):
        Step(Recurrent(64, 64))(llama(), [batch("plain", False)], Prefixed())
