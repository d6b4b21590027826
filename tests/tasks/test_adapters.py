"""Tuning goes on from an adapter: its own weights and head are trained, over a base that stays; others are refused."""

import json
import shutil
import warnings

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from typer.testing import CliRunner

import handscroll
from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.base.records import read_records
from handscroll.cli.main import app
from handscroll.models.adapters import adapt, weighted
from handscroll.models.peft import read_adapter
from handscroll.models.weights import load_model
from handscroll.tasks.finetune import Options, finetune
from handscroll.tasks.predict import load_tuned
from handscroll.train.lora import continue_lora, save_adapter
from tests.conformance.families import reference, reference_logits, save
from tests.naming import naming
from tests.tasks.chats import lines, saved
from tests.tasks.material import recipe, table, tiny

LORA = {"way": "lora", "epochs": 2}
FORM = {"lora": {"rank": 4, "alpha": 6.0, "targets": ("query", "value")}}
TALKS = [{"prompt": f"count {n}", "answer": f"{n} {n}"} for n in range(12)]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A classifier tuned once: base, data, and the adapter."""
    folder = tmp_path_factory.mktemp("first")
    base, data = tiny(folder / "bert"), table(folder / "train.csv")
    finetune(recipe(base, data, LORA | FORM | {"epochs": 6}), folder / "run")
    return base, data, folder / "run" / "adapter"


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own call
def test_an_adapter_is_tuned_further_in_its_own_form_with_its_head(tmp_path, first):
    base, data, adapter = first
    shown = []
    before = {name: value.clone() for name, value in handscroll.load(base).model.state_dict().items()}
    tuned = finetune(recipe(adapter, data, LORA), tmp_path / "run", Options(show=shown.append))
    old, new = weights(adapter), weights(tmp_path / "run" / "adapter")
    assert old.keys() == new.keys() and any("classifier" in name for name in new)
    assert not any(torch.equal(old[name], new[name]) for name in old)
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 6.0, str(base))
    inside = {name.replace(".base.", "."): value for name, value in tuned.lm.model.state_dict().items()}
    assert all(torch.equal(inside[name], before[name]) for name in before if name.startswith("layers."))
    losses = [record["loss"] for record in read_records(tmp_path / "run" / "records.jsonl")]
    assert losses[0] < 0.9 * next(read_records(adapter.parent / "records.jsonl"))["loss"]  # it begins where that ended
    (told,) = [str(line) for line in shown if str(line).startswith("adapter ")]
    assert str(adapter) in told and str(base) in told and "rank 4" in told
    began = json.loads((tmp_path / "run" / "recipe.json").read_text())["begins with"]
    assert (began["base"], began["adapters"]) == (str(base), [str(adapter)])
    card = (tmp_path / "run" / "adapter" / "README.md").read_text(encoding="utf-8")
    assert f'base_model: "{base}"' in card and f"began with the {told}" in card
    again, task = load_tuned(tmp_path / "run")
    assert task.labels == ("bad", "good") == again.labels
    theirs = peft.PeftModel.from_pretrained(
        transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=2), tmp_path / "run/adapter"
    ).eval()
    ids = torch.tensor([again.encode("w20 w33 w41")])
    with torch.no_grad():
        assert (theirs(ids).logits[0] - again.scores(["w20 w33 w41"])[0]).abs().max() < 1e-4


def test_a_killed_run_over_an_adapter_goes_on_and_refuses_another_adapter(tmp_path, first):
    _, data, _ = first
    shutil.copytree(first[2], adapter := tmp_path / "adapter")

    class Killed(Exception):
        pass

    def kill(record):
        if record["step"] == 7:
            raise Killed

    finetune(recipe(adapter, data, LORA), tmp_path / "whole")
    with pytest.raises(Killed):
        finetune(recipe(adapter, data, LORA), tmp_path / "part", Options(on_record=kill))
    finetune(recipe(adapter, data, LORA), tmp_path / "part")
    whole, part = (weights(tmp_path / run / "adapter") for run in ("whole", "part"))
    assert all(torch.equal(whole[name], part[name]) for name in whole)
    shutil.copy(tmp_path / "whole" / "adapter" / "adapter_model.safetensors", adapter)
    with pytest.raises(CheckpointError, match="begins with"):
        finetune(recipe(adapter, data, LORA), tmp_path / "part")


@pytest.mark.parametrize(
    "way", [{"way": "full"}, {"way": "head"}, {"way": "last", "layers": 1}, LORA | {"merge": True}]
)
def test_other_ways_and_merge_save_a_whole_model(tmp_path, first, way):
    base, data, adapter = first
    tuned = finetune(recipe(adapter, data, {"epochs": 1} | way), tmp_path / "run")
    lm, _ = load_tuned(tmp_path / "run")
    assert (tmp_path / "run" / "model" / "model.safetensors").exists() and not lm.adapters
    merged = handscroll.load(adapter).merge().model.layers[0].attention.query.weight
    close = torch.allclose(lm.model.layers[0].attention.query.weight, merged, atol=1e-7)
    assert close == (way["way"] in ("head", "last"))
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert str(adapter) in card and f'base_model: "{base}"' in card
    assert lm.scores(["w20 w33"]).sub(tuned.lm.scores(["w20 w33"])).abs().max() < 1e-5


def test_the_base_may_be_named_beside_the_adapter(tmp_path, first):
    base, data, adapter = first
    shutil.copytree(adapter, moved := tmp_path / "moved")
    config = json.loads((moved / "adapter_config.json").read_text()) | {"base_model_name_or_path": "some/where"}
    (moved / "adapter_config.json").write_text(json.dumps(config))
    told = ["finetune", "classify", "--data", str(data), "--steps", "1", "--out", str(tmp_path / "run")]
    found = CliRunner().invoke(app, [*told, str(moved)])
    assert "some/where" in str(found.exception) and "--adapter" in str(found.exception)
    found = CliRunner().invoke(app, [*told, str(base), "--adapter", str(moved)])
    assert found.exit_code == 0, (found.output, found.exception)
    written = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert (written["r"], written["base_model_name_or_path"]) == (4, str(base))
    told[-1] = str(tmp_path / "second")
    found = CliRunner().invoke(app, [*told, str(base), "--adapter", str(adapter.parent)])  # the folder of its run
    assert found.exit_code == 0, (found.output, found.exception)
    assert json.loads((tmp_path / "second" / "adapter" / "adapter_config.json").read_text())["r"] == 4


@pytest.mark.parametrize(
    "given",
    [["--rank", "4"], ["--set", "tuning.lora.rank=4"], ["--set", 'tuning.lora.targets=["query","value"]']],
)
def test_the_command_asks_for_no_setting_that_nobody_gave(tmp_path, first, given):
    _, data, adapter = first
    run = str(adapter.parent)  # the folder of a run stands for what came of it
    told = ["finetune", "classify", run, "--data", str(data), "--out", str(tmp_path / "run"), "--plan", *given]
    found = CliRunner().invoke(app, told)
    assert found.exit_code == 0, (found.output, found.exception)


def test_a_run_goes_on_whether_its_rank_is_written_or_not(tmp_path, first):
    base, data, _ = first
    told = ["finetune", "classify", str(base), "--data", str(data), "--out", str(tmp_path / "run"), "--steps", "1"]
    for more in (["--rank", "16"], [], ["--set", "tuning.lora.rank=16"]):
        found = CliRunner().invoke(app, [*told, *more])
        assert found.exit_code == 0, (found.output, found.exception)
    written = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"]) == (16, 32.0)


@pytest.mark.parametrize(
    "tuning, more, words",
    [
        ({"lora": {"rank": 8}}, {}, ("rank = 8", "the adapter: 4", "tuning.lora")),
        ({"lora": {"targets": ("query", "key")}}, {}, ("targets", "key", "tuning.lora")),
        ({"lora": {"tables": True}}, {}, ("tables", "tuning.lora")),
        ({}, {"labels": ("bad", "fine", "good")}, ("head", "['bad', 'good']", "['bad', 'fine', 'good']")),
        ({"way": "full"}, {"labels": ("bad", "fine", "good")}, ("head", "'fine'")),
        ({}, {"name": "regress"}, ("head", "['bad', 'good']", "number")),
    ],
)
def test_what_contradicts_the_adapter_is_refused(tmp_path, first, tuning, more, words):
    _, data, adapter = first
    if more.get("name"):
        data = tmp_path / "numbers.csv"
        data.write_text("text,number\n" + "".join(f"w{20 + n} w{30 + n},{n}\n" for n in range(20)))
    with pytest.raises(ConfigError, match=naming(*words)):
        finetune(recipe(adapter, data, LORA | tuning, more), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings_that_the_adapter_has_too_are_accepted(tmp_path, first):
    _, data, adapter = first
    shown = []
    how = LORA | {"lora": {"rank": 4, "alpha": 6.0 + 1e-12, "targets": ("value", "query")}}
    finetune(recipe(adapter, data, how), tmp_path / "run", Options(only_plan=True, show=shown.append))
    assert any("rank 4" in str(line) for line in shown)


@pytest.fixture(scope="module")
def talking(tmp_path_factory):
    """A model that talks, rounded to int8 too, and an adapter over the rounded one."""
    folder = tmp_path_factory.mktemp("talking")
    lines(folder / "talks.jsonl", TALKS)
    handscroll.load(saved(folder / "float"), weights="int8").save(folder / "int8")
    how = {"way": "lora", "steps": 2, "lora": {"rank": 2, "alpha": 4.0}}
    given = recipe(folder / "int8", folder / "talks.jsonl", how, {"name": "instruct", "max_tokens": 4}, held_out=0)
    finetune(given, folder / "run")
    return folder


def over(folder, tuning, name="instruct", adapter="run/adapter", data="talks.jsonl"):
    more = {"max_tokens": 4} if name == "instruct" else {}
    return recipe(folder / adapter, folder / data, LORA | {"steps": 2} | tuning, {"name": name} | more, held_out=0)


def test_an_adapter_over_quantised_weights_is_tuned_further_and_they_stay(tmp_path, talking):
    tuned = finetune(over(talking, {}), tmp_path / "run")
    old, new = weights(talking / "run" / "adapter"), weights(tmp_path / "run" / "adapter")
    assert old.keys() == new.keys() and not any(torch.equal(old[name], new[name]) for name in old)
    raw, kept = (lm.model.layers[0].attention.query for lm in (handscroll.load(talking / "int8"), tuned.lm))
    assert torch.equal(raw.raw, kept.base.raw)
    torch.testing.assert_close(handscroll.load(tmp_path / "run" / "adapter").logits([5, 6]), tuned.lm.logits([5, 6]))


@pytest.mark.parametrize(
    "tuning, words",
    [({"way": "full"}, ("quantised", "'lora'", "weights=float")), ({"merge": True}, ("tuning.merge", "quantised"))],
)
def test_over_quantised_weights_nothing_is_merged(tmp_path, talking, tuning, words):
    with pytest.raises(ConfigError, match=naming(*words)):
        finetune(over(talking, tuning), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_updates_that_could_not_be_saved_over_quantised_weights_are_refused_before_they_are_trained(tmp_path):
    handscroll.load(tiny(tmp_path / "gpt2", "gpt2"), weights="int8").save(tmp_path / "int8")
    with pytest.raises(ConfigError, match=naming("'gpt2'", "fused", "weights=float")):
        finetune(recipe(tmp_path / "int8", table(tmp_path / "train.csv"), LORA), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_adapter_is_tuned_further_and_whole(tmp_path, first):
    base, data, adapter = first
    for model, named in ((base, f"{adapter}=0.5"), (adapter, str(adapter))):
        given = recipe(model, data, LORA).model_copy(update={"adapter": named})
        with pytest.raises(ConfigError, match=naming("one adapter", "handscroll export", "--adapter")):
            finetune(given, tmp_path / "run")


def test_preferences_go_on_where_the_model_before_is_the_base(tmp_path, talking):
    """The rewards of a saved adapter are measured from its base, so one of another task would count its gains too."""
    lines(talking / "pairs.jsonl", [{"prompt": f"a {n}", "chosen": f"b {n}", "rejected": f"c {n}"} for n in range(8)])
    with pytest.raises(ConfigError, match=naming("prefer", "handscroll export")):
        finetune(over(talking, {}, "prefer", data="pairs.jsonl"), tmp_path / "no")
    given = recipe(talking / "float", talking / "pairs.jsonl", LORA | {"steps": 4}, {"name": "prefer"}, held_out=0)
    finetune(given, talking / "preferred")
    finetune(over(talking, {}, "prefer", "preferred/adapter", "pairs.jsonl"), tmp_path / "run")
    records = [[*read_records(run / "records.jsonl")] for run in (talking / "preferred", tmp_path / "run")]
    assert records[0][0]["margin"] == 0 < records[1][0]["margin"]


FORMS = {
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r".*\.1\..*v_proj": 9}},
    "layers": {"layers_to_transform": [0]},
    "whole": {"modules_to_save": ["norm", "lm_head"]},
    "root": {"use_rslora": True},
}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own call
@pytest.mark.parametrize("form", FORMS)
def test_an_adapter_of_peft_is_changed_and_read_by_peft_again(tmp_path, form):
    base, tokens = reference("llama"), torch.randint(3, 90, (2, 20), generator=torch.Generator().manual_seed(0))
    folder = save(base, tmp_path / "base")
    model = changed(folder, base, tmp_path / "theirs", target_modules=["q_proj", "v_proj"], **FORMS[form])
    adapter = read_adapter(tmp_path / "theirs")
    with torch.no_grad():
        before = model(tokens)
        settings = continue_lora(model, adapter)
        torch.testing.assert_close(model(tokens), before, atol=1e-5, rtol=1e-5)
        for parameter in filter(lambda one: one.requires_grad, model.parameters()):
            parameter += 0.1 * torch.randn_like(parameter)
        save_adapter(model, settings, tmp_path / "ours", str(folder))
        theirs = peft.PeftModel.from_pretrained(reference("llama"), tmp_path / "ours").eval()
        assert (reference_logits(theirs, tokens) - model(tokens)).abs().max() < 1e-4
    assert weights(tmp_path / "theirs").keys() == weights(tmp_path / "ours").keys()


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"target_modules": ["q_proj"], "use_dora": True}, ("DoRA",)),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [5]}, ("token",)),
        ({"target_modules": ["q_proj", "embed_tokens"]}, ("token table",)),
        ({"target_modules": ["q_proj", "lm_head"]}, ("a head by updates",)),
        ({"target_modules": ["q_proj"], "modules_to_save": ["v_proj"]}, ("value.weight", "whole")),
    ],
)
def test_what_is_not_trained_here_is_refused_with_the_way_out(tmp_path, settings, words):
    base = reference("llama")
    model = changed(save(base, tmp_path / "base"), base, tmp_path / "theirs", **settings)
    with pytest.raises(ConfigError, match=naming(*words, "handscroll export")):
        continue_lora(model, read_adapter(tmp_path / "theirs"))


def test_a_bias_of_an_adapted_projection_is_not_trained(tmp_path):
    base = reference("qwen2")
    folder = save(base, tmp_path / "base")
    model = changed(folder, base, tmp_path / "theirs", target_modules=["q_proj"], bias="lora_only")
    with pytest.raises(ConfigError, match=naming("query.bias", "handscroll export")):
        continue_lora(model, read_adapter(tmp_path / "theirs"))


def changed(folder, base, adapter, **settings):
    """Our model under an adapter of PEFT that is no longer zero, saved in `adapter`."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # what peft says about itself
        theirs = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=6, **settings))
        for parameter in filter(lambda one: one.requires_grad, theirs.parameters()):
            parameter += 0.1 * torch.randn_like(parameter)
        theirs.save_pretrained(adapter)
    model = load_model(folder)
    return adapt(model, weighted(adapter))
