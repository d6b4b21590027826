"""NaN and infinity in weights stop every use of a model with one error, and no file is written."""

import math

import pytest
import torch

import handscroll
from handscroll.base.config import read_recipe
from handscroll.base.errors import CheckpointError
from handscroll.base.spec import HeadSpec
from handscroll.cache.reading.store import Store
from handscroll.evaluate.needle import NeedleGrid, needle_grid
from handscroll.evaluate.perplexity import measure
from handscroll.evaluate.policies import PolicyGrid, policy_table
from handscroll.evaluate.samples import Sample
from handscroll.extend.extend import extension
from handscroll.models.documents import judged
from handscroll.models.sentences import pooled
from handscroll.nn.finite import check_weights, finite
from handscroll.text.framed import Framed
from handscroll.train.recipe import Recipe
from handscroll.train.start import run_recipe
from tests.conftest import ROOT
from tests.train.strategies.common import bert

TEXT = "import os\n\n\ndef walk(top):\n    return os.listdir(top)\n" * 2
SAMPLE = [Sample(list(range(60)), "a text", 0)]
STORED = "model.layers.0.mlp.up_proj.weight"


def broken(folder, place, value):
    """The model of a folder with one number changed, past what loading checks."""
    lm = handscroll.load(folder)
    with torch.no_grad():
        weight = lm.model.get_parameter(place)
        weight.view(-1)[3] = value
    return lm


def places(folder):
    model = handscroll.load(folder).model
    return [name for name, _ in model.named_parameters() if "layers.1" not in name]


def texts(lm, tmp_path):
    """Every way to ask a model for text or for the likelihood of one."""
    return {
        "generate": lambda: lm.generate(TEXT, max_tokens=3, beyond=True),
        "beams": lambda: lm.beams(TEXT, beams=2, max_tokens=3, beyond=True),
        "a draft": lambda: lm.generate(TEXT, max_tokens=3, beyond=True, draft=lm.draft(lm)),
        "samples": lambda: lm.continuations(TEXT, 2, max_tokens=3, beyond=True, temperature=1.0),
        "a conversation": lambda: list(lm.conversation().say("def f", lm.sampling(max_tokens=2))),
        "logits": lambda: lm.logits(TEXT),
        "nll": lambda: lm.nll(TEXT),
        "windows": lambda: lm.nll(TEXT, window=16),
        "likelihood": lambda: lm.loglikelihood([("def f", "(x)"), ("def g", "(y)")]),
        "shared context": lambda: lm.loglikelihood([(TEXT, "(x)"), (TEXT, "(y)"), (TEXT, "(z)")], beyond=True),
        "read": lambda: lm.read(TEXT, Store(tmp_path / "readings"), beyond=True),
        "perplexity": lambda: measure(lm, SAMPLE, "it"),
        "needle": lambda: needle_grid(lm, list(range(400)), NeedleGrid(lengths=(200,), samples=1, depths=(0.5,)), "it"),
        "policies": lambda: policy_table(
            lm, [Sample(list(range(256)), "a", 0)], PolicyGrid(length=256, samples=1, budgets=(50.0,))
        ),
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_such_number_stops_every_request(tiny_folder, tmp_path, value):
    lm = broken(tiny_folder, "layers.0.mlp.up.weight", value)
    for name, use in texts(lm, tmp_path).items():
        with pytest.raises(CheckpointError, match="not numbers"):
            assert use() is None, name
    assert not list(tmp_path.rglob("*.safetensors")), "no reading of such a model is kept"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_wherever_it_stands(tiny_folder, value):
    for place in places(tiny_folder):
        lm = broken(tiny_folder, place, value)
        if place == "embedding.weight":
            lm.model.embedding.weight.data[lm.encode(TEXT)[1]] = value
        for use in (lambda lm=lm: lm.generate(TEXT, max_tokens=2, beyond=True), lambda lm=lm: lm.nll(TEXT)):
            with pytest.raises(CheckpointError, match="not numbers"):
                assert use() is None, place


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_writes_weights_names_the_tensor_and_writes_none(tiny_folder, tmp_path, value):
    lm = broken(tiny_folder, "layers.0.mlp.up.weight", value)
    for use in (
        lambda: extension(lm, 128, "yarn"),
        lambda: extension(lm, 128, "auto", text=[ROOT / "handscroll" / "lm.py"]),
        lambda: lm.export_gguf(tmp_path / "it.gguf", "q8_0"),
    ):
        with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.up\.weight.*not numbers"):
            use()
    lm.save(tmp_path / "model")
    with pytest.raises(CheckpointError, match="not numbers"):
        handscroll.load(tmp_path / "model", weights="int8")
    changes = [f"model.path='{tmp_path / 'model'}'", "threads=1"]
    recipe = read_recipe(ROOT / "recipes" / "tiny" / "llama.toml", changes)
    recipe["model"] = {"path": str(tmp_path / "model")}
    recipe["tokenizer"] = {"path": str(tmp_path / "model")}
    with pytest.raises(CheckpointError, match="not numbers"):
        run_recipe(Recipe.parse(recipe, "recipe"), tmp_path / "run")
    assert not (tmp_path / "run").exists() and not list(tmp_path.glob("*.gguf*"))


def test_encoders_give_no_vectors_and_no_classes():
    model, classifier = bert(), bert(masked=False, following=False, head=HeadSpec(labels=("a", "b")))
    for one in (model, classifier):
        with torch.no_grad():
            one.get_parameter("embedding.weight")[5] = math.nan
    with pytest.raises(CheckpointError, match="not numbers"):
        pooled(model, [[4, 5, 6]])
    with pytest.raises(CheckpointError, match="not numbers"):
        judged(classifier, [Framed([4, 5, 6], [0] * 3, [(0, 0)] * 3, [None] * 3)])
    assert pooled(model, [[4, 6]]).isfinite().all()


def test_what_is_finite_passes_as_it_is():
    for value in (torch.tensor([1.0, -3e38]), torch.empty(0), torch.tensor([65504.0], dtype=torch.float16)):
        assert finite(value) is value
    check_weights(torch.nn.Linear(3, 4))
