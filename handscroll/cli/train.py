"""`handscroll train`: run a recipe, or resume a run."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from handscroll.base.config import read_recipe
from handscroll.base.errors import ConfigError
from handscroll.cli.screen import bar, error_screen, screen


def train(
    recipe: Annotated[Path, typer.Argument(help="The TOML recipe (recipes/tiny/llama.toml is a small one).")],
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Override a key.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. [runs/NAME of the recipe]")] = None,
    resume: Annotated[Path | None, typer.Option(help="Folder of the run to resume.")] = None,
    certify: Annotated[bool, typer.Option("--certify", help="First compare the strategy with the plain step.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Start even if the planner predicts that it will not fit.")
    ] = False,
) -> None:
    """Train a model by RECIPE; at the end it is saved to RUN/model."""
    from handscroll.train.recipe import Recipe
    from handscroll.train.start import RunOptions, run_recipe

    if resume is not None and out is not None and resume.resolve() != out.resolve():
        raise ConfigError(f"--resume {resume} goes on in that folder, and --out {out} names another: leave out one")
    settings = Recipe.parse(read_recipe(recipe, set_ or ()), str(recipe))
    folder = resume or out or Path("runs") / recipe.stem
    if resume is not None and not (resume / "recipe.json").exists():
        raise ConfigError(f"--resume {resume}: no run there (recipe.json is missing)")
    if resume is None and (folder / "recipe.json").exists():
        raise ConfigError(f"{folder} already holds a run; go on with --resume {folder} or give another --out")
    with bar("training", settings.steps) as advance:
        shown = Shown(advance)
        options = RunOptions(certify, force, shown.record, shown.pulse, lambda text: screen().print(text))
        lm, progress = run_recipe(settings, folder, options)
    if os.environ.get("RANK", "0") != "0":
        return  # only the first rank prints
    if not progress.ended(settings.steps):
        error_screen().print(f"stopped at step {progress.step}; go on with --resume {folder}")
        raise typer.Exit(130)
    if progress.stopped:
        screen().print(f"stopped early: {progress.stopped}")
    best = "" if progress.best_loss is None else f", best validation loss {progress.best_loss:.4f}"
    screen().print(f"{progress.step:,} steps, {progress.tokens:,} tokens{best}")
    screen().print(f"model: {lm.source}")


class Shown:
    """Feeds the progress bar: updates done, and the finished share of a long update."""

    def __init__(self, advance: Callable[..., None]):
        self.advance, self.done, self.note = advance, 0, ""

    def record(self, record: dict) -> None:
        validation = record.get("validation_loss")
        right = record.get("accuracy")  # of the update's examples, where the objective tells it
        shown = ("" if right is None else f" accuracy {right:.2f}") + (
            "" if validation is None else f" validation {validation:.4f}"
        )
        self.done, self.note = record["planned"], f"loss {record['loss']:.4f}{shown}"
        self.advance(self.done, self.note)

    def pulse(self, share: float, of: str) -> None:
        if 0 < share < 1:
            what = "of the next" if of == "update" else f"of the {of}"
            self.advance(self.done, f"{self.note} ({share:.0%} {what})".strip())


def register(app: typer.Typer) -> None:
    app.command()(train)
