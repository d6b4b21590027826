"""`auto` picks by measurement: on real and on freshly trained models, different methods win."""

import pytest
import torch

import handscroll
from handscroll.base.config import read_recipe
from handscroll.evaluate.perplexity import measure
from handscroll.evaluate.samples import read_windows
from handscroll.extend.extend import extension
from handscroll.extend.tune import TuneSettings
from handscroll.lm import LM
from handscroll.models.bloom import Bloom, BloomConfig
from handscroll.nn.positions.lengthen_learned import LEARNED
from handscroll.train.recipe import Recipe
from handscroll.train.start import run_recipe
from tests.conftest import ROOT
from tests.extend.material import TEXT

STEPS = [
    "threads=1",
    "stages.0.steps=40",
    "stages.1.steps=160",
    "stages.1.micro=8",
    "loop.save_every=500",
    "loop.evaluate_every=0",
]


def trained(folder, *overrides):
    """A tiny model of another kind, trained for some seconds on Python text to a context of 64."""
    recipe = read_recipe(ROOT / "recipes" / "tiny" / "llama.toml", [*STEPS, *overrides])
    return run_recipe(Recipe.parse(recipe, "recipe"), folder)[0]


@pytest.fixture(scope="module")
def stories(babyllama, tmp_path_factory):
    """The stories beside the model, cut in two: one part chooses and tunes, the other proves."""
    lines = (babyllama / "stories.txt").read_text().splitlines(keepends=True)
    folder = tmp_path_factory.mktemp("stories")
    (folder / "choose.txt").write_text("".join(lines[0::2]))
    (folder / "prove.txt").write_text("".join(lines[1::2]))
    return folder


def test_babyllama_four_times_longer_without_tuning(babyllama, stories):
    """Positions 256-767 come down from over 3 nats to below 1.1; short text stays within 0.12."""
    lm = handscroll.load(babyllama)
    samples = read_windows([stories / "prove.txt"], lm.tokenizer, 1024, 8)
    before = measure(lm, samples, "before")
    result = extension(lm, 1024, text=stories / "choose.txt")
    after = measure(result.lm, samples, "after")
    assert before.mean(256, 768) > 3.0
    assert after.mean(256, 768) < 1.1 and after.mean(768) < 1.1
    assert after.mean(0, 256) - before.mean(0, 256) < 0.12
    assert result.outcome.guarded and result.candidate.method == "yarn"
    behind = {row.candidate.method: row.behind for row in result.outcome.rows}
    assert set(behind) == {"none", "pi", "ntk", "dynamic-ntk", "yarn", "llama3"}
    assert behind["yarn"] == 0.0 == min(behind.values()) and behind["pi"] > 2.0 and behind["none"] > 1.0
    assert result.outcome.read < 65_000, (
        "22 candidates on a window of 1,024 tokens would be 22,528, 6 methods on 8 more 49,152"
    )


def test_babyllama_without_any_text_writes_its_own(babyllama, stories):
    lm = handscroll.load(babyllama)
    samples = read_windows([stories / "prove.txt"], lm.tokenizer, 1024, 4)
    result = extension(lm, 1024, measured=2048)
    assert result.outcome.samples[0].source == "the model's own writing"
    assert measure(result.lm, samples, "after").mean(256) < 1.1


@pytest.mark.parametrize("lora", [{"rank": 8}, pytest.param(None, marks=pytest.mark.long)], ids=["lora", "full"])
def test_a_short_tuning_helps(lora, babyllama, stories, tmp_path):
    lm = handscroll.load(babyllama)
    samples = read_windows([stories / "prove.txt"], lm.tokenizer, 1024, 2)
    values = {"files": (str(stories / "choose.txt"),), "steps": 12, "rows": 2, "lora": lora}
    result = extension(lm, 1024, "llama3", tune=TuneSettings.parse(values, "test"), folder=tmp_path / "run")
    assert result.lm.provenance["tuned"]["steps"] == 12
    untuned = measure(handscroll.extend(lm, 1024, "llama3"), samples, "untuned").mean(256)
    assert measure(result.lm, samples, "tuned").mean(256) < untuned - 0.1
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists() == (lora is not None)


@pytest.mark.long
def test_a_windowed_model_is_left_as_it_is(tmp_path):
    """A model that never looks further back than its window needs no scaling: 'none' wins."""
    lm = trained(
        tmp_path / "run", "model.sizes.family='mistral'", "model.sizes.windows=[12,12]", "model.sizes.context=64"
    )
    result = extension(lm, 256, text=TEXT, measured=1024)
    assert result.candidate.method == "none"
    assert result.outcome.winner.long < result.outcome.base + 0.3
    behind = {row.candidate.method: row.behind for row in result.outcome.rows}
    assert behind["none"] < behind["pi"]


def test_gpt2_has_its_own_methods(tmp_path):
    sizes = "{width=48, layers=2, heads=4, mlp_width=96, context=64}"
    lm = trained(tmp_path / "run", "model.family='gpt2'", f"model.sizes={sizes}")
    result = extension(lm, 256, text=TEXT, measured=1024)
    assert {row.candidate.method for row in result.outcome.rows} == set(LEARNED)
    assert result.outcome.rows[0].behind == 0.0
    assert result.lm.model.get_parameter("position_embedding.weight").shape == (256, 48)
    assert lm.model.get_parameter("position_embedding.weight").shape == (64, 48)


def test_measuring_leaves_the_model_as_it_was(tiny_folder):
    lm = handscroll.load(tiny_folder)
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    config = lm.model.config
    extension(lm, 128, text=TEXT, measured=256)
    assert lm.model.config is config
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.state_dict().items())


def test_bloom_is_measured_with_slopes_as_they_are_and_divided(tiny_folder):
    tokenizer = handscroll.load(tiny_folder).tokenizer
    torch.manual_seed(0)
    config = BloomConfig(vocab=tokenizer.vocab_size, width=32, layers=2, heads=4, context=64)
    lm = LM(Bloom(config).eval(), tokenizer, "new")
    result = extension(lm, 256, "all", text=TEXT, measured=512)
    losses = {row.candidate.method: row.long for row in result.outcome.rows}
    assert set(losses) == {"none", "slopes"} and losses["none"] != losses["slopes"]
    assert result.lm.context == 256 and result.lm.trained == 64 and lm.model.config is config
    reader = "handscroll only" if result.candidate.method == "slopes" else "any library"
    assert result.lm.provenance["read_by"] == reader
