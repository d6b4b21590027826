"""GLM-4: a part of each head is rotated, in pairs; what conformance does not cover."""

import json

import pytest
import torch
import transformers

from handscroll.base.config import read_recipe
from handscroll.base.errors import ConfigError
from handscroll.extend.methods import apply, candidates
from handscroll.generate.engine.engine import Engine
from handscroll.generate.prefill import hidden_chunks
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling
from handscroll.models.glm import GLMConfig
from handscroll.models.llama import Llama
from handscroll.models.new import About, new_model
from handscroll.models.weights import load_model, read_config, save_model
from handscroll.nn.init import initialise
from handscroll.nn.marks import Marks
from handscroll.plan.workloads import recipe_workloads
from handscroll.train.lora import LoRA, add_lora, merge_lora, save_adapter
from handscroll.train.recipe import Recipe
from handscroll.train.start import run_recipe
from tests.conformance.families import reference, reference_logits, save
from tests.conftest import ROOT
from tests.generate.asking import decode

YARN = {"name": "yarn", "factor": 4.0, "original": 64}


def build(family: str = "glm4", scaling: dict | None = None, head: int = 16, rotated: int = 8) -> Llama:
    positions = {"base": 500.0, "scaling": scaling or {"name": "none"}, "context": 256 if scaling else 64}
    sizes = {"vocab": 97, "width": 64, "layers": 2, "heads": 4, "kv_heads": 2, "mlp_width": 96}
    sizes |= {"head_size": head, "rotated_size": rotated, "positions": positions | {"trained": 64}}
    model = Llama(GLMConfig.parse(sizes | {"family": family, "eos": (2,)}, "test"))
    initialise(model, "normal", 2, torch.Generator().manual_seed(1), std=0.2)
    return model.eval()


def tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(3, 97, (rows, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("factor", [0.25, 0.75, 1.0])
def test_any_part_of_a_head_is_rotated_as_the_reference_does(factor, tmp_path):
    config = reference("glm").config
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 500.0}
    config.rope_parameters = rope | {"partial_rotary_factor": factor}
    config.max_position_embeddings = 256
    torch.manual_seed(0)
    theirs = transformers.GlmForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0.0, 0.2)
    model = load_model(save(theirs, tmp_path / "theirs"))
    assert model.config.rotated_size == int(16 * factor)
    save_model(model, tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    ids = tokens(2, 200)
    with torch.no_grad():
        assert (model(ids) - reference_logits(theirs, ids)).abs().max() < 2e-5
    assert torch.equal(reference_logits(again, ids), reference_logits(theirs, ids))


@pytest.mark.parametrize("family", ["glm", "glm4"])
@pytest.mark.parametrize("scaling", [YARN, YARN | {"name": "dynamic-yarn"}], ids=["yarn", "dynamic-yarn"])
@torch.no_grad()
def test_reading_in_pieces_is_reading_at_once(family, scaling):
    model = build(family, scaling).double()
    ids = tokens(2, 60)
    whole = model(ids, length=200)
    cache = model.new_cache()
    parts = [model.logits(h) for _, _, h in hidden_chunks(model, ids[:, :40], Marks.run(0, 40), cache, 200, chunk=24)]
    parts += [model(ids[:, at : at + 1], cache=cache, length=200) for at in range(40, 60)]
    assert (torch.cat(parts, dim=1) - whole).abs().max() < 1e-10


@torch.no_grad()
def test_few_tokens_take_the_compiled_rotation_to_the_same_place():
    model = build(head=64, rotated=32)
    ids = tokens(1, 8)
    fast = model(ids)
    with torch.enable_grad():
        slow = model(ids)
    assert (fast - slow).abs().max() < 2e-5


@pytest.mark.parametrize("method", ["pi", "ntk", "dynamic-ntk", "yarn", "llama3", "dynamic-yarn", "self-extend"])
@torch.no_grad()
def test_extension_works_and_keeps_short_text_where_it_is_promised(method, tmp_path):
    model, ids = build("glm"), tokens(1, 60)
    short = model(ids)
    (chosen, *_) = candidates(model, method, 256)
    apply(model, chosen)
    if method in ("dynamic-ntk", "dynamic-yarn"):
        assert torch.equal(model(ids, length=60), short)
    long = tokens(1, 250)
    assert model(long, length=250).isfinite().all()
    save_model(model, tmp_path / "longer")
    again = load_model(tmp_path / "longer")
    assert again.config == model.config and again.config.context == 256
    want = model(long, length=250)
    assert torch.equal(again(long, length=250), want)
    if not model.spec.positions[0].only_ours:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "longer", dtype=torch.float32).eval()
        assert (reference_logits(theirs, long) - want).abs().max() < 1e-4


def test_generation_ends_at_any_of_the_end_tokens(tmp_path):
    model = build()
    model.config = model.config.model_copy(update={"eos": (2, 5, 7)})
    save_model(model, tmp_path)
    assert read_config(tmp_path)[1].eos == (2, 5, 7)
    found = [step[0].token for step in decode(model, [[4, 9]], Sampling(max_tokens=12), model.config.eos)]
    ends = model.config.model_copy(update={"eos": (found[3],)})
    again = list(decode(model, [[4, 9]], Sampling(max_tokens=12), ends.eos))
    assert again[-1][0].finish == "eos" and len(again) == found.index(found[3]) + 1


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_engine_and_int8_keys_read_half_rotated_heads(deterministic):
    model = build("glm4", YARN, head=64, rotated=32)
    model = model if deterministic else model.double()
    sampling, prompts = Sampling(max_tokens=7), [[4, 9, 11], [*range(3, 40)]]
    engine = Engine(model, blocks=40, block=8, deterministic=deterministic)
    requests = [engine.submit(Request(prompt, sampling)) for prompt in prompts]
    for _ in engine.run():
        pass
    for request, prompt in zip(requests, prompts, strict=True):
        assert request.answer == [step[0].token for step in decode(model, [prompt], sampling, model.config.eos)]
    assert len(list(decode(model, prompts[1:], sampling, model.config.eos, policy="int8"))) > 1


def test_absent_end_tokens_are_those_of_the_published_models(tmp_path):
    save_model(build(), tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["eos_token_id"] = None
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert read_config(tmp_path)[1].eos == ()  # this vocabulary has none of them
    (tmp_path / "config.json").write_text(json.dumps(settings | {"vocab_size": 151552}))
    assert read_config(tmp_path)[1].eos == (151329, 151336, 151338)


def test_adapters_are_merged_since_their_rows_would_be_in_another_order(tmp_path):
    model = build()
    add_lora(model, LoRA(rank=2))
    with pytest.raises(ConfigError, match="reordered"):
        save_adapter(model, LoRA(rank=2), tmp_path, "base")
    merge_lora(model)


@pytest.mark.parametrize("factor", [0.1, 1.5, 0.0])
def test_a_part_that_cannot_be_rotated_is_refused(factor, tmp_path):
    save_model(build(), tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text()) | {"partial_rotary_factor": factor}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="partial_rotary_factor"):
        read_config(tmp_path)


def test_what_is_rotated_is_told():
    assert build().config.describe_positions() == "rotary, 8 of 16 numbers, base 500, no scaling"


def test_a_recipe_makes_one_that_the_planner_and_the_reference_know(tmp_path):
    values = read_recipe(ROOT / "recipes" / "tiny" / "llama.toml", ["model.family='glm'", "threads=1"])
    values["stages"] = [{"length": 32, "rows": 2, "steps": 1, "mix": {"text": 1.0}}]
    recipe = Recipe.parse(values, "recipe")
    lm, _ = run_recipe(recipe, tmp_path / "run")
    config = lm.model.config
    assert (config.family, config.rotated_size, config.positions.base, config.trained) == ("glm", 6, 10_000.0, 64)
    (workload,) = recipe_workloads(recipe)
    assert workload.spec == config.spec
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model", dtype=torch.float32).eval()
    ids = torch.tensor([lm.encode("import json\nfrom email import policy\n")])
    assert (lm.logits(ids[0]) - reference_logits(theirs, ids)[0]).abs().max() < 1e-4
    sizes = {"width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "head_size": 8, "mlp_width": 32, "rotated_size": 8}
    other = new_model("glm", sizes, About(lm.tokenizer, 48)).config
    assert (other.rotated_size, other.context) == (8, 48)
