"""A length curriculum: stages of (context, positions, rows, steps) in one run, each of which begins at its step.

A stage may end early once its loss by position is flat. When the model predicts the last quarter of a row no worse
than the second, it uses the whole row and is ready for a longer one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from handscroll.base.config import Config
from handscroll.models.model import Decoder
from handscroll.objectives.causal import QUARTERS


class Grow(Config):
    """End a stage early when (mean loss of the last quarter) - (mean loss of the second) <= `tolerance` nats.

    Both are means over the targets of the last `window` updates. A stage has at least `least` updates.
    """

    tolerance: float = 0.02
    window: int = Field(default=20, ge=1)
    least: int = Field(default=20, ge=1)


class NewPositions(Config):
    """The position settings that a stage begins with. The stage's length becomes the context."""

    scaling: dict[str, Any] = Field(default_factory=lambda: {"name": "none"})
    base: float | None = Field(default=None, gt=0, description="rotary base; if not given, it stays as it is")


@dataclass
class Curriculum:
    """The stages of a run. `steps` are the planned updates of each stage; a stage with `grow` may end earlier."""

    lengths: Sequence[int]
    steps: Sequence[int]
    positions: Sequence[NewPositions | None]
    grow: Sequence[Grow | None]
    stage: int = -1
    recent: list[tuple[float, ...]] = field(default_factory=list)

    def stage_at(self, planned: int) -> int:
        """The stage of the update number `planned` (from 0; skipped updates count)."""
        for stage in range(len(self.steps)):
            planned -= self.steps[stage]
            if planned < 0:
                return stage
        return len(self.steps) - 1

    def enter(self, model: Decoder, planned: int) -> bool:
        """Give the model the positions of the stage that update `planned` belongs to. Returns True for a new stage.

        Raises:
            ConfigError: the model has a learned position table, which cannot be rescaled during a run.
        """
        stage = self.stage_at(planned)
        if stage == self.stage:
            return False
        self.stage, self.recent = stage, []
        for entered in range(stage + 1):  # a resumed run applies the earlier stages too
            self._apply(model, entered)
        return True

    def flat(self, planned: int, metrics: dict[str, tuple[float, int]]) -> int:
        """How many updates of the stage to skip after the update number `planned`. 0: continue the stage."""
        settings = self.grow[self.stage]
        if settings is None:
            return 0
        second, last = metrics[QUARTERS[1]], metrics[QUARTERS[3]]
        self.recent = [*self.recent, (*second, *last)][-settings.window :]
        end = sum(self.steps[: self.stage + 1])
        done = planned + 1 - (end - self.steps[self.stage])
        if done < max(settings.least, settings.window) or self.stage == len(self.steps) - 1:
            return 0
        near, near_count, far, far_count = (sum(column) for column in zip(*self.recent, strict=True))
        if not near_count or not far_count or far / far_count - near / near_count > settings.tolerance:
            return 0
        return end - planned - 1

    def _apply(self, model: Decoder, stage: int) -> None:
        new = self.positions[stage]
        if new is None:
            return
        where = f"recipe: stages.{stage}.positions"
        positions = model.spec.positions[0].rescaled(new.scaling, new.base, self.lengths[stage], where)
        model.config = model.config.changed({"positions": positions}, where)
