"""BERT's pre-training through the one loop: learns, resumes exactly, refuses what does not fit."""

import json

import pytest
import torch

from handscroll.base.config import read_recipe
from handscroll.base.errors import ConfigError
from handscroll.data.batch import Batch
from handscroll.models.bert import Bert, BertConfig
from handscroll.models.weights import load_model
from handscroll.nn.init import initialise
from handscroll.objectives.causal import Causal
from handscroll.objectives.masked import Masked
from handscroll.train.recipe import Recipe
from handscroll.train.start import run_recipe
from tests.naming import naming
from tests.resuming import resumes_to_the_same_bytes
from tests.train.material import TINY


def recipe(*overrides):
    return Recipe.parse(read_recipe(TINY, ["threads=1", *overrides]), "recipe")


def records(folder):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def test_a_run_learns_and_resumes_on_the_same_masks(tmp_path):
    run_recipe(recipe(), tmp_path / "whole")
    whole = records(tmp_path / "whole")
    first, last = whole[0], whole[-1]
    assert last["masked_loss"] < first["masked_loss"] - 0.3 and last["validation_loss"] < whole[9]["validation_loss"]
    assert {"pair_loss", "pair_accuracy", "loss_quarter_1"} <= set(last)

    lm = resumes_to_the_same_bytes(recipe(), tmp_path / "whole", step=17)
    assert lm.embed(["def f(x):", "import json"]).shape == (2, 48)


ALONE = ["stages=[{length=64,rows=2,steps=2,mix={pairs=1.0}}]"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["objective=causal"], "'causal'"),
        (["objective={name='causal',rate=0.2}"], "'rate'"),
        (["data.text={kind='copies'}"], "'masked'"),
        (["data.pairs={kind='text',sampling='sliding',order='reading'}", *ALONE], "order"),
        (["model.sizes.masked=false"], naming("'masked'", "'bert'")),
        (["model.sizes.following=false"], "next-sentence"),
        (["objective.rate=0"], "rate"),
        (["memory.strategy=recurrent", "memory.chunk=64", "memory.remembered=64"], "learned"),
    ],
)
def test_refusals(overrides, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        run_recipe(recipe("stages=[{length=64,rows=2,steps=2,mix={pairs=0.5,text=0.5}}]", *overrides), tmp_path)


def test_an_objective_refuses_a_model_of_the_other_kind(tiny_folder):
    causal = load_model(tiny_folder)
    run = Batch(torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.int64)).marks()
    with pytest.raises(ConfigError, match="encoder"):
        Masked().mask(causal, run)
    with pytest.raises(ConfigError, match="'masked'"):
        Causal().mask(small(), run)


def small(**more):
    sizes = {"vocab": 31, "width": 16, "layers": 2, "heads": 2, "mlp_width": 24, "context": 32}
    model = Bert(BertConfig(**sizes, pooler=True, following=True, **more))
    initialise(model, "normal", 2, torch.Generator().manual_seed(0), std=0.2)
    return model.double()


def test_the_loss_is_the_sum_of_two_means():
    """Against torch's own cross-entropies of logits that were made in one piece."""
    model, generator = small(), torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 31, (3, 20), generator=generator)
    targets = torch.where(torch.rand(3, 20, generator=generator) < 0.3, tokens.roll(1, 1), -100)
    labels = torch.full((3, 20), -100)
    labels[:, 0] = torch.tensor([0, 1, 1])
    index = torch.arange(20).expand(3, -1)
    kinds = (index > 9).long()
    batch = Batch(tokens, targets, index, torch.zeros_like(index), index, kinds=kinds, labels=labels)
    marks, count = batch.marks(), int((targets >= 0).sum())
    objective = Masked(pair_share=count / 3 / 20)  # hidden tokens a pair, as a share of the row
    with torch.no_grad():
        hidden = model.hidden(model.embed(tokens, marks), marks, objective.mask(model, marks))
        _same_loss(model, objective, hidden, batch)
    none = Batch(tokens, torch.full_like(targets, -100))
    assert float(Masked().loss(model, hidden, none).total.detach()) == 0.0


def _same_loss(model, objective, hidden, batch):
    targets, labels = batch.targets, batch.labels
    loss = objective.loss(model, hidden, batch)
    mean = torch.nn.functional.cross_entropy(model.logits(hidden).flatten(0, 1), targets.flatten())
    pairs = torch.nn.functional.cross_entropy(model.following_logits(hidden[:, 0]), labels[:, 0])
    assert float(loss.total) / loss.count == pytest.approx(float(mean + pairs), rel=1e-12)
    assert loss.metrics["pair_loss"] == (pytest.approx(3 * float(pairs)), 3)
