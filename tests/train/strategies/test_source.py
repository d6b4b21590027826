"""The layer-outer strategy of encoder-decoders: the plain gradients, to 1e-12 in float64."""

from typing import Any

import pytest
import torch

from handscroll.data.batch import Batch
from handscroll.models.t5 import T5, T5Config
from handscroll.nn.noise import Noise
from handscroll.objectives.causal import Causal
from handscroll.train.step import Memory, Step
from handscroll.train.strategies.blocks import DiskBlocks, HostBlocks
from handscroll.train.strategies.certificate import certify
from handscroll.train.strategies.plain import Plain
from handscroll.train.strategies.staged import Staged
from tests.train.strategies.common import CPU, adapted, gradients

SIZES: dict[str, Any] = {
    "vocab": 67,
    "width": 32,
    "encoder_layers": 3,
    "layers": 2,
    "heads": 4,
    "head_size": 8,
    "mlp_width": 48,
}
SIZES |= {"start": 0, "reach": 40}


def t5(**more):
    model, generator = T5(T5Config(**SIZES | more)), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.2, generator=generator)
    return model


MODELS = {
    "gated": t5,
    "relu, tied, one layer each": lambda: t5(mlp="relu", tied=True, scaled=True, encoder_layers=1, layers=1),
    "lora": lambda: adapted(t5(), "query", "value"),
    # Nothing before the decoder's first cross-attention is trained.
    "lora of gates": lambda: adapted(t5(), "gate"),
}


def side(kind, rows, length, documents, generator):
    """Tokens of `length`; packed: some documents in a row, of other sizes on each side; padding in the first row."""
    tokens, targets = (torch.randint(0, 67, (rows, length), generator=generator) for _ in range(2))
    if kind == "plain":
        return Batch(tokens, targets)
    steps, size = torch.arange(length).expand(rows, -1), -(-length // documents)
    segment = steps // size if kind == "packed" else torch.zeros_like(steps)
    padding = (steps >= length // 2 - 3) & (torch.arange(rows)[:, None] == 0)  # of the short kind: whole chunks
    index, segment = steps.masked_fill(padding, -1), segment.masked_fill(padding, -1)
    return Batch(tokens, targets.masked_fill(padding, -100), index, segment, steps % size)


def batch(kind, rows=2, source=110, target=70):
    generator = torch.Generator().manual_seed(1)
    read = side(kind, rows, source, 4, generator)
    written = side(kind, rows, target, 4, generator)
    return Batch(
        *(getattr(written, name) for name in ("tokens", "targets", "index", "segment", "positions")), source=read
    )


def strategies(folder):
    return {
        "chunks": Staged(40, 1),
        "one chunk": Staged(256, 1),
        "tiled": Staged(64, 1, mlp_tile=20),
        "disk": Staged(40, 1, blocks=lambda: DiskBlocks(folder, CPU)),
        "host": Staged(64, 1, blocks=lambda: HostBlocks(CPU)),
    }


def distance(found, wanted):
    assert found.keys() == wanted.keys()
    scale = max(float(value.norm()) for value in wanted.values()) * 1e-6
    return max(float((found[name] - wanted[name]).norm()) / max(float(wanted[name].norm()), scale) for name in wanted)


@pytest.mark.parametrize("kind", ["plain", "packed", "short"])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_the_plain_step(name, kind, tmp_path):
    data = batch(kind)
    for dtype, limit, noise in [(torch.float64, 1e-12, Noise(0.1, seed=3, update=4)), (torch.float32, 5e-5, None)]:
        model = MODELS[name]().to(dtype)
        want = Step(Plain())(model, [data], Causal(), noise=noise)
        wanted = gradients(model)
        every = strategies(tmp_path)
        every = every if kind == "plain" else {label: every[label] for label in ("chunks", "tiled", "disk")}
        for label, strategy in every.items() if noise else [("tiled", every["tiled"])]:
            loss = Step(strategy)(model, [data], Causal(), noise=noise)
            assert loss.count == want.count and float(loss.total) == pytest.approx(float(want.total), rel=limit)
            assert distance(gradients(model), wanted) <= limit, (label, dtype)
    assert not any(tmp_path.iterdir()), "offloading leaves nothing behind"


def test_bfloat16_agrees_to_bfloat16():
    model = t5()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5 if parameter.dim() > 1 else 1.0)
    Step(Plain())(model, [batch("packed")], Causal())
    exact, apart = torch.cat([grad.flatten() for grad in gradients(model).values()]), []
    for strategy in (Plain(), Staged(64, 1)):
        Step(strategy, autocast=torch.bfloat16)(model, [batch("packed")], Causal())
        found = torch.cat([grad.flatten() for grad in gradients(model).values()])
        apart.append(float((found - exact).norm() / exact.norm()))
    assert 0 < apart[1] < 1.2 * apart[0] < 0.2, apart


def test_the_certificate_cuts_both_texts(tmp_path):
    memory = Memory(strategy="layer-outer", chunk=128, mlp_tile=64)
    certificate = certify(t5(), memory, batch("packed", 1, 400, 320), Causal(), tmp_path, Noise(0.1, seed=1, update=0))
    assert certificate.passed and certificate.float64 < 1e-12 and certificate.tokens == 288 + 288


def test_progress_is_told_to_the_end():
    seen = []
    Step(Staged(40, 1))(t5(), [batch("plain")], Causal(), pulse=seen.append)
    assert seen == sorted(seen) and seen[-1] == 1.0 and len(seen) > 40 and 0.85 < seen[-3] < 1.0
