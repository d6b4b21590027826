"""Runs a recipe: makes the tokenizer, model, rows and plan in this order, trains, and saves the result."""

import hashlib
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import handscroll
from handscroll.base.errors import ConfigError
from handscroll.base.runs import write_file
from handscroll.data.batch import collate
from handscroll.data.sources import TokenSource
from handscroll.data.stream import Chain, Listed
from handscroll.generate.defaults import Defaults
from handscroll.lm import LM, load
from handscroll.models.induction import set_induction_heads
from handscroll.models.locate import locate
from handscroll.models.model import Decoder, Model
from handscroll.models.new import About, as_classifier, new_model
from handscroll.models.sentence_folder import Sentences
from handscroll.models.weights import check_device, written_dtype
from handscroll.nn.finite import check_weights
from handscroll.nn.init import initialise
from handscroll.nn.noise import Noise
from handscroll.objectives.settings import ObjectiveSettings
from handscroll.plan.workloads import recipe_workloads
from handscroll.text.tokenizer import Tokenizer
from handscroll.text.training import train_tokenizer
from handscroll.train.longest import check_positions
from handscroll.train.loop import Callbacks, OnPulse, OnRecord, train
from handscroll.train.lora import add_lora, merge_lora, save_adapter, stands_apart
from handscroll.train.parallel.shard import shard, unsharded
from handscroll.train.parallel.world import World, join_world, same_everywhere
from handscroll.train.planned import afford, planned
from handscroll.train.recipe import Recipe
from handscroll.train.run import RECIPE, Progress, Run, check_recipe, write_recipe
from handscroll.train.step import Memory
from handscroll.train.strategies.certificate import certify, memory_needed
from handscroll.train.streams import Account, HeldOut, held_out, row_streams, updates
from handscroll.train.validation import Validate, validator


@dataclass(frozen=True)
class RunOptions:
    """Options of a run that are not part of the recipe. `show` receives the text to read before the run."""

    certify: bool = False
    force: bool = False
    on_record: OnRecord | None = None
    on_pulse: OnPulse | None = None
    show: Callable[[str], None] = lambda text: None


def run_recipe(recipe: Recipe, folder: str | Path, options: RunOptions = RunOptions()) -> tuple[LM, Progress]:
    """Train with a recipe in the run folder `folder` (new, or one to resume), and save the result to `folder/model`.

    Under torchrun every rank calls this with the same arguments, and the first rank writes.

    Raises:
        ConfigError, DataError, CheckpointError: raised by the parts of the run. No file is left half-written.
    """
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    check_device(recipe.device)
    torch.manual_seed(recipe.seed)
    world = join_world(recipe.parallel, recipe.device)
    made = _run(recipe, Path(folder), world, options)
    world.close()  # not after an error: the other ranks may never reach this barrier, and torchrun ends them
    return made


def _run(recipe: Recipe, folder: Path, world: World, options: RunOptions) -> tuple[LM, Progress]:
    tokenizer = trained_tokenizer(recipe, folder, world)
    model = build_model(recipe, tokenizer)
    text = recipe.source(tokenizer, model.config)
    objective = recipe.learned(model, by_position=True)
    _check_source(recipe, model, world)
    check_positions(recipe, model.config, int(text.lengths.max()))
    rows = row_streams(recipe, text, tokenizer)
    stream = updates(recipe, rows, tokenizer, model)
    held = None if recipe.validated is None else held_out(recipe.validated, tokenizer, model.config)
    resolved = _resolved(recipe, text, folder, world)
    workloads = recipe_workloads(recipe, model.config, sum(document.nbytes for document in text.tokens))
    plan = planned(recipe.memory, workloads, folder, world, options.force, options.show if world.first else None)
    if world.first:
        write_recipe(folder, resolved)  # a run that the plan refused has not begun
        options.show(str(plan))
        _tell(Account.of(rows, held), folder, options)
    if recipe.lora is not None:
        add_lora(model, recipe.lora, recipe.seed)
    if options.certify and world.first:
        _certify(recipe, plan.memory, model, stream, options, folder)
    if world.size > 1 and recipe.parallel.shard:
        shard(model, world)
    run = Run(
        folder,
        model,
        recipe.optimizer,
        recipe.schedule,
        recipe.loop_settings(),
        plan.memory,
        recipe.regularise,
        recipe.spike,
        world,
        recipe.curriculum(),
    )
    validate = None if held is None else validation(held, tokenizer, model, recipe.objective)
    heard = (options.on_record, options.on_pulse) if world.first else (None, None)
    progress = train(run, stream, objective, Callbacks(validate, *heard))
    model = unsharded(model, world, lambda fresh: recipe.lora and add_lora(fresh, recipe.lora, recipe.seed))
    ended = progress.ended(recipe.steps)
    if recipe.lora is not None and world.first:
        if ended and recipe.model.path is not None and stands_apart(model):
            save_adapter(model, recipe.lora, folder / "adapter", recipe.model.path)
        merge_lora(model)
    lm = LM(model, tokenizer, str(folder / "model"))
    if recipe.model.path is not None:
        lm = trained_from(recipe.model.path, lm)
    if world.first and ended:
        plan.compare()
        lm.save(folder / "model")
    return lm, progress


def _resolved(recipe: Recipe, text: TokenSource, folder: Path, world: World) -> dict[str, Any]:
    """The resolved recipe. One that differs from that of the run folder, or between ranks, is refused."""
    # These three say how the result is computed, so they may change when a run resumes elsewhere.
    what = recipe.model_dump(mode="json", exclude={"memory", "parallel", "device"})
    if recipe.memory.strategy == "recurrent":  # this strategy is not exact, so its settings change the result
        what["memory"] = recipe.memory.model_dump(mode="json", include={"strategy", "chunk", "remembered"})
    resolved = {"recipe": what, "versions": versions(), "text": text.fingerprint}
    same_everywhere(world, "the recipe, text or version", _digest(resolved))
    resolved["threads"] = torch.get_num_threads()
    if world.first:
        check_recipe(folder, resolved)
    return resolved


def _tell(account: Account, folder: Path, options: RunOptions) -> None:
    """Show what of the texts is in no row, and keep it in the run folder."""
    write_file(folder / "rows.json", (json.dumps(account.record(), indent=2, ensure_ascii=False) + "\n").encode())
    for line in account.lines():
        options.show(line)


def trained_tokenizer(recipe: Recipe, folder: Path, world: World | None = None) -> Tokenizer:
    """The named tokenizer, the checkpoint's, or one that is trained once and saved in the run folder.

    A folder without `recipe.json` holds no run yet: a tokenizer in it is of a start that failed, perhaps with other
    settings or another text, and is made again.
    """
    settings = recipe.tokenizer
    if settings.path is not None:
        return Tokenizer.load(settings.path)
    if settings.train is None:
        if recipe.model.path is None:
            raise ConfigError("recipe: tokenizer needs a path or settings to train one, since the model is new")
        return Tokenizer.load(recipe.model.path)
    kept = folder / "tokenizer"
    begun = (folder / RECIPE).exists() and (kept / "tokenizer.json").exists()
    if (world is None or world.first) and not begun:
        assert recipe.text is not None, "the recipe's own check"
        documents = (document.text for document in recipe.text.documents())
        train_tokenizer(documents, settings.train).save(kept)
    if world is not None:
        world.agree(True)  # the other ranks wait until it is saved
    return Tokenizer.load(kept)


def build_model(recipe: Recipe, tokenizer: Tokenizer) -> Decoder:
    """A new model of the recipe's family and sizes, or the checkpoint it starts from, in float32 on its device."""
    labels = recipe.objective.labels(recipe.mixed)
    if recipe.model.path is not None:
        loaded = load(recipe.model.path, dtype="float32", weights="float").model
        check_weights(loaded)
        if labels:
            seeded = torch.Generator().manual_seed(recipe.seed)
            loaded = as_classifier(loaded, labels, recipe.model.initialise, seeded)
        if not loaded.config.eos and tokenizer.eos is not None and loaded.spec.reads == "forward":
            loaded.config = loaded.config.model_copy(update={"eos": (tokenizer.eos,)})  # its documents end with it
        return loaded.to(recipe.device)
    about = About(tokenizer, max(stage.length for stage in recipe.stages), labels)
    model = new_model(str(recipe.model.family), recipe.model.sizes, about)
    generator = torch.Generator().manual_seed(recipe.seed)
    initialise(model, recipe.model.initialise, model.config.layers, generator)
    if recipe.model.induction:
        set_induction_heads(model, generator)
    return model.to(recipe.device)


def _certify(recipe: Recipe, memory: Memory, model: Decoder, stream: Chain, options: RunOptions, folder: Path) -> None:
    """Compare the strategy with the plain step on a row of the run's longest stage. Show and save the result."""
    longest = max(range(len(recipe.stages)), key=lambda stage: recipe.stages[stage].length)
    (first, *_), _ = next(stream.resume(stream.beginning(longest)))
    noise = Noise(recipe.regularise.dropout, recipe.seed, 0) if recipe.regularise.dropout else None
    objective = recipe.learned(model)
    if not options.force:
        needed, way_out = memory_needed(model, memory), "leave --certify out, or use --force"
        afford(needed, "the gradient certificate", way_out, model.device)
    certificate = certify(model, memory, first, objective, folder, noise)
    write_file(folder / "certificate.json", (json.dumps(certificate.as_record(), indent=2) + "\n").encode())
    options.show(str(certificate))


def validation(held: HeldOut, tokenizer: Tokenizer, model: Model, settled: ObjectiveSettings) -> Validate:
    """A function that computes the mean loss on the held-out windows.

    They are made into the rows of the objective `settled` only once.
    """
    rows = settled.rows(Listed(held.rows), held.length, 0, model, tokenizer)
    return validator(settled.objective(model), [collate([row]) for row, _ in rows], held.length)


def _check_source(recipe: Recipe, model: Decoder, world: World) -> None:
    """Refuse settings that do not work for an encoder-decoder."""
    if model.spec.encoder and world.size > 1 and recipe.parallel.shard:
        raise ConfigError(f"parallel.shard is for decoders, not for family '{model.config.family}': leave it out")


def _digest(value: Any) -> int:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def versions() -> dict[str, str]:
    """The versions that the numbers of a run depend on besides the recipe."""
    return {"handscroll": handscroll.__version__, "torch": torch.__version__, "python": platform.python_version()}


def trained_from(source: str | Path, lm: LM) -> LM:
    """`lm`, whose weights come from the checkpoint `source`, with what that recommends and the dtype of its files."""
    path = locate(source)
    return replace(lm, defaults=Defaults.load(path), stored=written_dtype(path), sentences=Sentences.read(path))
