"""The training loop: it learns, resumes exactly, stops before bad updates, averages, stops early."""

import json
import math
from contextlib import contextmanager

import pytest
import torch

from handscroll.base.errors import CapacityError, CheckpointError, ConfigError, DataError
from handscroll.base.records import read_records
from handscroll.data.batch import Batch
from handscroll.objectives.causal import Causal
from handscroll.train import loop as loop_module
from handscroll.train import run as run_module
from handscroll.train import start
from handscroll.train.parallel.world import World
from handscroll.train.recipe import Recipe
from handscroll.train.run import Run, write_recipe
from handscroll.train.schedule import Schedule
from handscroll.train.start import RunOptions, run_recipe
from handscroll.train.step import Step
from handscroll.train.strategies.plain import Plain
from tests.resuming import Killed, dies_after


def test_a_tiny_run_learns_and_saves_an_ordinary_folder(recipe, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lm, progress = run_recipe(recipe(), tmp_path / "run")
    records = list(read_records(tmp_path / "run" / "records.jsonl"))
    assert [record["step"] for record in records] == list(range(1, 31))
    validated = [record["validation_loss"] for record in records if "validation_loss" in record]
    assert len(validated) == 3 and validated[-1] < validated[0] < math.log(512) + 0.1
    assert progress.tokens == sum(8 * (32 if step < 10 else 64) for step in range(30))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model", dtype=torch.float32)
    text = "def read(self, size=-1):\n    return self.buffer"
    ids = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")(text).input_ids
    assert ids == lm.encode(text)
    with torch.no_grad():
        assert (theirs(torch.tensor([ids])).logits[0] - lm.logits(ids)).abs().max() < 1e-4


@pytest.fixture
def stop(monkeypatch):
    """A function that asks the run that goes on to stop, as a signal does."""
    original, asked = loop_module._asked_to_stop, []

    @contextmanager
    def watched():
        with original() as names:
            asked.append(names)
            yield names

    monkeypatch.setattr(loop_module, "_asked_to_stop", watched)
    return lambda: asked[-1].append("SIGTERM")


def assert_same(one, two, folder):
    """Two models and their records, in the folders `straight` and `cut`, are the same bytes."""
    first, second = (folder / name / "records.jsonl" for name in ("straight", "cut"))
    assert first.read_bytes() == second.read_bytes()
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, two.model.state_dict()[name]), name


@pytest.mark.promise("R8")
@pytest.mark.parametrize("cut", [pytest.param(7, marks=pytest.mark.long), 10, 13])  # 10: where a stage ends
def test_stopped_and_resumed_equals_straight(recipe, tmp_path, cut, stop):
    """Asked to stop after any update, also in the middle of a stage: records and weights end up the same bytes."""
    straight, _ = run_recipe(recipe("loop.average=0.9"), tmp_path / "straight")
    options = RunOptions(on_record=lambda record: stop() if record["step"] == cut else None)
    _, progress = run_recipe(recipe("loop.average=0.9"), tmp_path / "cut", options)
    assert progress.step == cut
    resumed, _ = run_recipe(recipe("loop.average=0.9"), tmp_path / "cut")
    assert_same(straight, resumed, tmp_path)


@pytest.mark.promise("R8")
@pytest.mark.parametrize("which", [1, 3])  # the first validation, and that of the last update
def test_stopped_in_a_validation_and_resumed_equals_straight(recipe, tmp_path, which, stop):
    """The update of an abandoned validation stays; the next start validates it, writes its record and saves."""
    more = ("loop.average=0.9", "loop.patience=2")
    straight, _ = run_recipe(recipe(*more), tmp_path / "straight")
    first = []  # what is done at the first pulse of each validation

    def on_pulse(done, of):
        if of == "validation" and (not first or done == first[0]):
            first.append(done)
            if len(first) == which:
                stop()

    _, progress = run_recipe(recipe(*more), tmp_path / "cut", RunOptions(on_pulse=on_pulse))
    assert progress.step == 10 * which and not progress.ended(30)
    assert len(first) == which and 0 < first[0] < 1
    records = list(read_records(tmp_path / "cut" / "records.jsonl"))
    assert [record["step"] for record in records] == list(range(1, 10 * which))
    for _ in range(2):  # the second start finds nothing to do once all is done
        resumed, after = run_recipe(recipe(*more), tmp_path / "cut")
        assert after.ended(30) and not after.unwritten
        assert_same(straight, resumed, tmp_path)


def test_a_stop_in_the_first_validation_of_the_next_start_loses_nothing(recipe, tmp_path, stop):
    straight, _ = run_recipe(recipe(), tmp_path / "straight")
    options = RunOptions(on_pulse=lambda done, of: stop() if of == "validation" else None)
    for _ in range(2):
        _, progress = run_recipe(recipe(), tmp_path / "cut", options)
        assert progress.step == 10 and dict(progress.unwritten)["step"] == 10
    assert_same(straight, run_recipe(recipe(), tmp_path / "cut")[0], tmp_path)


def test_copies_are_compared_now_and_then_and_before_each_checkpoint(recipe, tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr(start, "join_world", lambda *given: World(compare_every=4))
    monkeypatch.setattr(Run, "compare", lambda run: compared.append(run.progress.step))
    run_recipe(recipe("loop.save_every=13", "stages.1.steps=5"), tmp_path / "run")
    assert compared == [4, 8, 12, 13, 15]


def test_resuming_with_another_recipe_is_refused(recipe, tmp_path):
    run_recipe(recipe(), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"another recipe \(differs in: optimizer\.lr: .*, now 0\.01\)"):
        run_recipe(recipe("optimizer.lr=0.01"), tmp_path / "run")


@pytest.mark.parametrize("outer", ["recipe", "tuning", "tune"])
def test_what_differs_is_named_as_it_is_written(tmp_path, outer):
    before = {"tuning": {"epochs": 1.0, "lora": None}, "columns": {}, "model": "a", "steps": 3}
    now = {"tuning": {"epochs": 2.0, "lora": {"rank": 4}}, "columns": {"text": "T"}, "model": "b", "seed": 1}
    write_recipe(tmp_path, {outer: before, "versions": {"torch": "1"}})
    with pytest.raises(CheckpointError) as refused:
        write_recipe(tmp_path, {outer: now, "versions": {"torch": "2"}})
    told = str(refused.value).partition("(differs in: ")[2].partition(");")[0]
    assert set(told.split("; ")) == {
        'columns.text: not set, now "T"',
        'model: "a", now "b"',
        "seed: not set, now 1",
        "steps: 3, now not set",
        "tuning.epochs: 1.0, now 2.0",
        "tuning.lora.rank: not set, now 4",
        'versions.torch: "1", now "2"',
    }


def test_a_run_that_the_plan_refused_has_not_begun(recipe, tmp_path, monkeypatch):
    def refused(*given, **more):
        raise CapacityError("it does not fit")

    monkeypatch.setattr(start, "planned", refused)
    with pytest.raises(CapacityError):
        run_recipe(recipe("optimizer.lr=0.01"), tmp_path / "run")
    monkeypatch.undo()
    run_recipe(recipe(), tmp_path / "run")


def test_settings_that_did_nothing_are_no_difference(tmp_path):
    """An earlier version took a patience without validations."""
    write_recipe(tmp_path, {"recipe": {"loop": {"save_every": 1, "patience": 3}}, "threads": 1})
    write_recipe(tmp_path, {"recipe": {"loop": {"save_every": 1, "evaluate_every": 0}}, "threads": 1})
    with pytest.raises(CheckpointError, match="another recipe"):
        write_recipe(tmp_path, {"recipe": {"loop": {"save_every": 2}}, "threads": 1})


@pytest.mark.promise("R10")
def test_accumulated_gradients_equal_one_batch(recipe):
    """1 x 8 rows, 4 x 2 and 8 x 1, with ragged padding and packed documents, in float64."""
    from handscroll.models.llama import Llama, LlamaConfig
    from handscroll.nn.init import initialise

    positions = {"base": 1e4, "scaling": {"name": "none"}, "context": 32, "trained": 32}
    sizes = {"vocab": 61, "width": 24, "layers": 2, "heads": 3, "kv_heads": 1, "head_size": 8, "mlp_width": 40}
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 61, (8, 20), generator=generator)
    targets = tokens.roll(-1, 1)
    targets[:, -1] = -100
    index = torch.arange(20).expand(8, -1).clone()
    segment = (torch.arange(20) >= 9).long().expand(8, -1).clone()
    for row in range(8):
        index[row, 20 - row :], segment[row, 20 - row :], targets[row, 19 - row :] = -1, -1, -100
    positions_of = torch.where(segment == 1, torch.arange(20) - 9, torch.arange(20)).clamp_min(0)
    grads = []
    for rows in (8, 2, 1):
        model = Llama(LlamaConfig(**sizes, positions=positions)).double()
        initialise(model, "normal", 2, torch.Generator().manual_seed(1), std=0.3)
        parts = [slice(first, first + rows) for first in range(0, 8, rows)]
        batches = [Batch(tokens[p], targets[p], index[p], segment[p], positions_of[p]) for p in parts]
        loss = Step(Plain())(model, batches, Causal())
        grads.append([loss.total, *(p.grad for p in model.parameters())])
    for other in grads[1:]:
        for want, got in zip(grads[0], other, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


def test_packed_documents_equal_documents_alone():
    """Loss and gradients of a packed row are those of its documents, one at a time."""
    from handscroll.data.batch import collate
    from handscroll.data.pack import pack
    from handscroll.models.gpt2 import GPT2, GPT2Config
    from handscroll.models.llama import Llama, LlamaConfig
    from handscroll.nn.init import initialise

    positions = {"base": 1e4, "scaling": {"name": "none"}, "context": 32, "trained": 32}
    sizes = {"vocab": 61, "width": 24, "layers": 2, "heads": 3, "mlp_width": 40}
    generator = torch.Generator().manual_seed(0)
    documents = [torch.randint(0, 61, (size,), generator=generator).numpy() for size in (9, 14, 5)]
    for build in (
        lambda: Llama(LlamaConfig(**sizes, kv_heads=1, head_size=8, positions=positions)),
        lambda: GPT2(GPT2Config(**sizes, context=32)),
    ):
        totals = []
        for batches in ([collate(list(pack(documents, 28)))], [collate(list(pack([d], len(d)))) for d in documents]):
            model = build().double()
            initialise(model, "normal", 2, torch.Generator().manual_seed(1), std=0.3)
            loss = Step(Plain())(model, batches, Causal())
            totals.append([loss.total, *(p.grad for p in model.parameters())])
            assert loss.count == 9 + 14 + 5 - 3
        for want, got in zip(*totals, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


@pytest.mark.promise("R13")
def test_a_non_finite_loss_stops_before_the_update(recipe, tmp_path, monkeypatch):
    from handscroll.objectives import causal

    calls = []

    class Poisoned(Causal):
        def loss(self, model, hidden, batch):
            calls.extend([1] * torch.is_grad_enabled())  # validation asks for it too
            if len(calls) == 6:
                with torch.no_grad():
                    model.get_parameter("layers.1.mlp.up.weight").data[0, 0] = math.nan
                hidden = hidden + model.get_parameter("layers.1.mlp.up.weight").sum()
            return super().loss(model, hidden, batch)

    monkeypatch.setattr(causal, "Causal", Poisoned)
    with pytest.raises(DataError, match=r"step 6: loss nan.*layers\.1\.mlp\.up\.weight"):
        run_recipe(recipe("loop.save_every=5"), tmp_path / "run")
    records = list(read_records(tmp_path / "run" / "records.jsonl"))
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5]


def test_early_stopping_keeps_the_best_weights(recipe, tmp_path):
    settings = recipe("loop.patience=2", "loop.evaluate_every=2", "optimizer.lr=2.0", "optimizer.matrix_lr=2.0")
    lm, progress = run_recipe(settings, tmp_path / "run")
    assert progress.stopped and progress.step < 30
    from handscroll.train.start import validation
    from handscroll.train.streams import held_out

    held = held_out(settings.validation, lm.tokenizer, lm.model.config)
    validate = validation(held, lm.tokenizer, lm.model, settings.objective)
    assert validate(lm.model) == pytest.approx(progress.best_loss, abs=1e-6)


def test_schedules_by_hand():
    wsd = Schedule(name="wsd", warmup=4, decay=0.5, final=0.0)
    assert [wsd.factor(step, 10) for step in range(10)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    cosine = Schedule(name="cosine", warmup=0, final=0.1)
    assert cosine.factor(0, 10) == pytest.approx(1.0) and cosine.factor(5, 10) == pytest.approx(0.55)
    assert Schedule(name="constant", warmup=2).factor(7, 10) == 1.0


def test_bad_recipes_are_refused_with_the_nearest_name(recipe):
    for override, words in (
        ("optimizer.learning_rate=1", "optimizer.learning_rate"),
        ("optimiser.lr=1", "'optimizer'"),
        ("model.family='lama'", "model.family"),
        ("stages.0.mix.txt=1.0", "'text'"),
        ("stages.0.rows=0", "stages.0.rows"),
        ("data.copies.kind='copy'", "copies"),
        ("loop.steps=7", "loop.steps"),
    ):
        with pytest.raises(ConfigError) as error:
            made = recipe(override)
            made.loop_settings()
        assert words in str(error.value), str(error.value)


def test_the_resolved_recipe_is_kept(recipe, tmp_path):
    run_recipe(recipe(), tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert Recipe.parse(kept["recipe"], "kept") == recipe()
    assert set(kept["versions"]) == {"handscroll", "torch", "python"} and kept["threads"] == 1


def test_a_patience_that_counts_nothing_and_a_text_that_is_never_used_are_refused(recipe):
    with pytest.raises(ConfigError, match=r"patience 3 counts validations.*evaluate_every"):
        recipe("loop.patience=3", "loop.evaluate_every=0")
    text = {"files": ["{stdlib}/argparse.py"], "length": 64}
    values = recipe().model_dump(mode="json", exclude={"loop"})
    with pytest.raises(ConfigError, match=r"\[validation\] is never used.*evaluate_every"):
        Recipe.parse(values | {"validation": text}, "recipe")
    Recipe.parse(values | {"validation": text, "loop": {"evaluate_every": 0}}, "recipe")  # left out on purpose


def test_a_run_of_another_number_of_gpus_goes_on_here(recipe, tmp_path, monkeypatch, caplog):
    real = run_module.rng_state
    monkeypatch.setattr(run_module, "rng_state", lambda: real() | {"cuda": ["00"] * 5})
    with pytest.raises(Killed):
        run_recipe(recipe("loop.save_every=3"), tmp_path / "run", dies_after(4))
    monkeypatch.undo()
    _, progress = run_recipe(recipe("loop.save_every=3"), tmp_path / "run")
    assert progress.step == 30 and "the random state of 5 GPUs" in caplog.text


def test_a_failed_start_leaves_no_tokenizer_to_the_next_one(recipe, tmp_path):
    """The first start stops before there is a run, so neither its settings nor its files bind the second."""
    with pytest.raises(ConfigError, match="heads"):
        run_recipe(recipe("model.sizes.heads=5", "tokenizer.train.vocab=300"), tmp_path / "run")
    assert (tmp_path / "run" / "tokenizer" / "tokenizer.json").exists()
    (tmp_path / "run" / "tokenizer" / "tokenizer_config.json").unlink()  # as after a kill between the two files
    lm, _ = run_recipe(recipe("tokenizer.train.vocab=400", "stages.1.steps=1"), tmp_path / "run")
    fresh, _ = run_recipe(recipe("tokenizer.train.vocab=400", "stages.1.steps=1"), tmp_path / "fresh")
    assert lm.tokenizer.vocab_size == 400 and lm.tokenizer.eos == fresh.tokenizer.eos is not None
    for name in ("tokenizer/tokenizer_config.json", "records.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
