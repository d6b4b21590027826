"""Initialisation: the spreads that the schemes promise, and induction heads that copy before any training."""

import math

import pytest
import torch

from handscroll.base.errors import ConfigError
from handscroll.data.batch import collate
from handscroll.data.recall import Copies
from handscroll.data.sources import TokenSource
from handscroll.models.bert import Bert, BertConfig
from handscroll.models.gpt2 import GPT2, GPT2Config
from handscroll.models.induction import set_induction_heads
from handscroll.models.llama import Llama, LlamaConfig
from handscroll.models.t5 import T5, T5Config
from handscroll.nn.init import initialise
from handscroll.nn.marks import Marks


def model(layers: int = 3) -> Llama:
    positions = {"base": 1e5, "scaling": {"name": "none"}, "context": 512, "trained": 512}
    sizes = {
        "vocab": 4096,
        "width": 256,
        "layers": layers,
        "heads": 8,
        "kv_heads": 2,
        "head_size": 32,
        "mlp_width": 704,
    }
    return Llama(LlamaConfig(**sizes, tied=True, positions=positions))


@pytest.mark.parametrize(
    ("scheme", "spread"), [("normal", 0.02), ("xavier", math.sqrt(2 / (256 + 704))), ("he", math.sqrt(2 / 256))]
)
def test_spreads(scheme, spread):
    made = model()
    initialise(made, scheme, 3, torch.Generator().manual_seed(0))
    assert float(made.get_parameter("layers.0.mlp.up.weight").detach().std()) == pytest.approx(spread, rel=0.02)
    assert float(made.get_parameter("embedding.weight").detach().std()) == pytest.approx(0.02, rel=0.02)


def learned(family, **sizes):
    shared = {"vocab": 300, "width": 64, "layers": 2, "heads": 4, "mlp_width": 128, "context": 96}
    return BUILT[family](CONFIGS[family](**shared, **sizes))


BUILT, CONFIGS = {"bert": Bert, "gpt2": GPT2, "t5": T5}, {"bert": BertConfig, "gpt2": GPT2Config, "t5": T5Config}


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_mimetic_attention_begins_near(family):
    """At the start most of a token's attention is on its neighbours; under `normal` it is everywhere."""
    near = {}
    for scheme in ("normal", "mimetic"):
        made = learned(family)
        initialise(made, scheme, 2, torch.Generator().manual_seed(0))
        tokens = torch.randint(0, 300, (4, 96), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            x = made.embed(tokens, Marks.run(0, 96))
            layer = made.layers[0]
            x = x if family == "bert" else layer.attention_norm(x)
            q, k = (side(x).view(4, 96, 4, 16).transpose(1, 2) for side in (layer.attention.query, layer.attention.key))
            weights = (q @ k.mT / 4).softmax(dim=-1)
        steps = torch.arange(96)
        near[scheme] = float(weights[..., (steps[:, None] - steps).abs() <= 4].sum() / weights.sum())
    assert near["normal"] < 0.12 and near["mimetic"] > 0.5, near


@pytest.mark.parametrize("ahead", [True, False], ids=["encoder", "decoder"])
def test_mimetic_relative_bias_falls_with_distance(ahead):
    """Scores of T5 heads fall with distance on both sides, each head at its own slope; near keys get most attention."""
    made = learned("t5", head_size=16, encoder_layers=2, start=0)
    initialise(made, "mimetic", 2, torch.Generator().manual_seed(0))
    bias = made.source_bias() if ahead else made.bias()
    run = Marks.run(0, 96)
    values = bias.values(run, run, torch.device("cpu"))[0].detach()
    steps = torch.arange(96)
    for query in (0, 40, 95):
        rows = (
            [values[:, query, : query + 1].flip(1), values[:, query, query:]]
            if ahead
            else [values[:, query, : query + 1].flip(1)]
        )
        for row in rows:
            assert (row[:, 0] == 0).all() and (row.diff(dim=1) <= 0).all()
    assert (values[:, 40, 39] == -torch.logspace(1, -5, 4, base=2.0)).all()
    seen = values if ahead else values.masked_fill(steps[:, None] < steps, -torch.inf)
    near = (steps[:, None] - steps).abs() <= 4
    assert float(seen[0].softmax(dim=-1)[near].sum() / 96) > 0.75


def test_mimetic_is_for_learned_positions():
    with pytest.raises(ConfigError, match="learned"):
        initialise(model(), "mimetic", 3, torch.Generator().manual_seed(0))


def test_induction_heads_copy_at_step_zero():
    """At least 70 % of the repeated tokens of random segments; a plain start gets none."""
    rows = Copies(TokenSource([torch.arange(99).numpy()]), 4096, 128, seed=9, segment=(16, 40))
    batch = collate([rows.row(number) for number in range(8)])
    found = {}
    for induction in (False, True):
        made = model()
        generator = torch.Generator().manual_seed(1)
        initialise(made, "xavier", 3, generator)
        if induction:
            set_induction_heads(made, generator)
        with torch.no_grad():
            hits = made(batch.tokens).argmax(dim=-1) == batch.targets
        found[induction] = float(hits[batch.targets >= 0].float().mean())
    assert found[True] > 0.7 and found[False] < 0.05, found


def test_models_without_room_are_refused():
    with pytest.raises(ConfigError, match=r"\b3\b"):
        set_induction_heads(model(layers=2), torch.Generator())
