"""A recipe: all settings of a training run, read from TOML. `start.py` runs it."""

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from handscroll.base.config import Config
from handscroll.base.errors import nearest
from handscroll.data.sources import TokenSource
from handscroll.models.model import Model
from handscroll.models.new import NEW
from handscroll.objectives.causal import NextToken
from handscroll.objectives.objective import Objective
from handscroll.objectives.settings import ObjectiveSettings, objective_from
from handscroll.text.tokenizer import Tokenizer
from handscroll.text.training import TokenizerConfig
from handscroll.train.curriculum import Curriculum, Grow, NewPositions
from handscroll.train.lora import LoRA
from handscroll.train.optim import Optimizer
from handscroll.train.parallel.world import Parallel
from handscroll.train.regularise import Regularise
from handscroll.train.rows import Files, RowData
from handscroll.train.run import Loop
from handscroll.train.schedule import Schedule
from handscroll.train.spike import Spike
from handscroll.train.step import Memory


class Stage(Config):
    """A stage of `steps` updates of `rows` rows of `length` tokens, drawn from `mix` by weight.

    Each update runs in micro-batches of `micro` rows.
    """

    length: int = Field(ge=16)
    rows: int = Field(ge=1)
    micro: int | None = Field(default=None, ge=1)
    steps: int = Field(ge=1)
    mix: dict[str, float]
    positions: NewPositions | None = Field(default=None, description="new rotary positions from this stage on")
    grow: Grow | None = Field(default=None, description="end early once the loss by position is flat")

    @model_validator(mode="after")
    def _whole(self):
        if self.micro is not None and self.rows % self.micro:
            raise ValueError(f"rows {self.rows} is not a multiple of micro {self.micro}")
        return self


class ModelRecipe(Config):
    """A checkpoint to start from (`path`), or a `family` with its sizes and an initialisation."""

    path: str | None = None
    family: str | None = Field(default=None, description="family of a new model (models/new.py)")
    initialise: Literal["normal", "xavier", "he", "mimetic"] = "normal"
    induction: bool = Field(default=False, description="set induction heads by hand (models/induction.py)")
    sizes: dict[str, Any] = Field(default_factory=dict)

    @field_validator("family")
    @classmethod
    def _known(cls, family: str | None) -> str | None:
        if family is not None and family not in NEW:
            raise ValueError(f"no new model can be made of this family: {nearest(family, NEW)}")
        return family

    @model_validator(mode="after")
    def _one(self):
        if (self.path is None) == (self.family is None):
            raise ValueError("give either path (start from a checkpoint) or family with sizes (a new model)")
        return self


class TokenizerRecipe(Config):
    """A tokenizer to use (`path`), or settings to train one on the training text."""

    path: str | None = None
    train: TokenizerConfig | None = None


class Validation(Files):
    """Held-out text: `windows` windows of `length` tokens, the same ones in every validation."""

    length: int = Field(ge=16)
    windows: int = Field(default=8, ge=1)


class Recipe(Config):
    """A training run. `text` is the training text, `data` names kinds of rows made of it, and `stages` mix them.

    Labelled documents are read from their own files. If all rows are labelled documents, `text` may be left out.
    """

    seed: int = Field(default=0, ge=0)
    threads: int = Field(default=0, ge=0, description="0: as many as there are processors")
    device: Literal["cpu", "cuda"] = "cpu"
    text: Files | None = None
    model: ModelRecipe
    objective: Annotated[SerializeAsAny[ObjectiveSettings], BeforeValidator(objective_from)] = NextToken()
    tokenizer: TokenizerRecipe = TokenizerRecipe()
    data: dict[str, RowData]
    stages: tuple[Stage, ...] = Field(min_length=1)
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    loop: dict[str, Any] = Field(default_factory=dict)
    memory: Memory = Memory()
    parallel: Parallel = Parallel()
    lora: LoRA | None = None
    regularise: Regularise = Regularise()
    spike: Spike = Spike()
    validation: Validation | None = None

    @model_validator(mode="after")
    def _names(self):
        for stage in self.stages:
            for name in stage.mix:
                if name not in self.data:
                    raise ValueError(f"stages: mix names '{name}': {nearest(name, self.data)}")
            in_order = [name for name in stage.mix if getattr(self.data[name], "order", "") == "reading"]
            if in_order and len(stage.mix) > 1:
                raise ValueError(f"stages: '{in_order[0]}' is read in order, so no other rows can be mixed with it")
        self.objective.check(self.mixed, self.validation is not None)
        made = [name for name, data in self.mixed.items() if data.kind != "labelled"]
        if self.text is None and (made or self.tokenizer.train is not None):
            what = f"rows '{made[0]}' are" if made else "the tokenizer is"
            raise ValueError(f"text: {what} made of it; name its files")
        if self.lora is not None and self.lora.frozen == "bfloat16" and self.loop.get("precision") != "bfloat16":
            raise ValueError("lora.frozen = 'bfloat16' needs loop.precision = 'bfloat16'")
        if self.lora is not None and self.lora.frozen == "bfloat16" and self.model.path is None:
            raise ValueError(
                "lora.frozen = 'bfloat16' is for a checkpoint (model.path); a new model has nothing frozen"
            )
        idle = [name for name in ("evaluate_every", "patience") if self.loop.get(name)]
        if self.validation is None and idle:
            raise ValueError(f"loop.{idle[0]} needs [validation] with files and length: give that, or leave it out")
        if self.validation is not None and "evaluate_every" not in self.loop:
            raise ValueError(
                "the text of [validation] is never used without loop.evaluate_every: give the number of updates "
                "between two validations (0 leaves them out), or leave [validation] out"
            )
        if self.loop.get("steps") not in (None, self.steps):
            raise ValueError(f"loop.steps {self.loop['steps']} contradicts the stages' {self.steps}; leave it out")
        if any(stage.grow is not None for stage in self.stages) and not self.objective.quarters:
            raise ValueError(
                f"stages: grow looks at losses by position, and objective '{self.objective.name}' has none: leave grow "
                "out"
            )
        self.loop_settings()
        return self

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def validated(self) -> Validation | None:
        """The held-out text, if the run validates."""
        return self.validation if self.loop.get("evaluate_every") else None

    @property
    def mixed(self) -> dict[str, Any]:
        """The kinds of rows that the stages use."""
        return {name: self.data[name] for stage in self.stages for name in stage.mix}

    def source(self, tokenizer: Tokenizer, config: Any) -> TokenSource:
        """The training text as tokens, for a model of this configuration. Without a text it is a single token."""
        return (
            TokenSource([np.zeros(1, dtype=np.int32)], ["no text"])
            if self.text is None
            else self.text.source(tokenizer, config.eos, config.spec.reads == "forward")
        )

    def learned(self, model: Model, by_position: bool = False) -> Objective:
        """The objective for `model`. It refuses a model that cannot be trained by it."""
        return self.objective.objective(model, self.mixed, self.regularise.label_smoothing, by_position)

    def curriculum(self) -> Curriculum:
        stages = self.stages
        return Curriculum(
            lengths=[stage.length for stage in stages],
            steps=[stage.steps for stage in stages],
            positions=[stage.positions for stage in stages],
            grow=[stage.grow for stage in stages],
        )

    def loop_settings(self) -> Loop:
        return Loop.parse({"seed": self.seed, **self.loop, "steps": self.steps}, "loop")
