"""A model as a checkpoint of its tuning run has it, for predictions while the run goes on, and for ensembles."""

from pathlib import Path

from handscroll.base.errors import ConfigError
from handscroll.base.runs import STEP_NAME
from handscroll.lm import LM
from handscroll.models.weights import read_json
from handscroll.tasks.begin import begun
from handscroll.tasks.recipe import TuningRecipe
from handscroll.tasks.task import Task
from handscroll.tasks.ways import prepare
from handscroll.train.checkpoint import load_checkpoint
from handscroll.train.run import BEST, RECIPE, take_weights


def run_of(source: str | Path) -> Path | None:
    """The run folder whose checkpoint lies at `source` (`RUN/step-000200` or `RUN/best/step-000200`); None: no such."""
    folder = Path(source)
    if not STEP_NAME.fullmatch(folder.name) or not folder.is_dir():
        return None
    parent = folder.resolve().parent
    return parent.parent if parent.name == BEST and not (parent / RECIPE).exists() else parent


def at_step(folder: str | Path) -> tuple[LM, Task]:
    """The model of the run at a checkpoint, in float32, and its task.

    The model and its adapter are loaded from where the run found them. An adapter is not merged.

    Raises:
        ConfigError: it is no checkpoint of a tuning run, or one that merged an adapter before it began.
        CheckpointError: the checkpoint is damaged, or of another model than the one that lies there now.
    """
    folder = Path(folder)
    run = run_of(folder)
    told = read_json(run / RECIPE) if run is not None and (run / RECIPE).exists() else {}
    if "tuning" not in told:
        raise ConfigError(f"{folder} is no checkpoint of a run of handscroll finetune ({RECIPE} does not say so)")
    values = told["tuning"]
    if began := told.get("begins with"):
        if values["tuning"]["way"] != "lora":
            raise ConfigError(
                f"{run} merged an adapter before it began: use its result ({run}/model) when it has ended"
            )
        values = values | {"model": began["base"], "adapter": began["adapters"][0]}
    recipe = TuningRecipe.parse(values, str(folder))
    beginning = begun(recipe)
    lm = beginning.ready(recipe.task, recipe.tuning.seed)
    prepare(lm, recipe.tuning, beginning.adapter)
    take_weights(lm.model, folder, load_checkpoint(folder)[0]["model"])
    lm.model.eval()
    return lm, recipe.task
