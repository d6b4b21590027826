"""Where a model lies that was tuned for a task: in its own folder, or in that of the run."""

from pathlib import Path

from handscroll.models.weights import TASK


def tuned_folder(source: str | Path) -> Path | None:
    """The folder whose model was tuned for the task in its `task.json`: `source`, or `model/` or `adapter/` in it."""
    folders = (Path(source) / "model", Path(source) / "adapter", Path(source))
    return next((folder for folder in folders if (folder / TASK).exists()), None)
