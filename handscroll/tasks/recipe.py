"""What a tuning run is told: the task, the model, the data, and how it is trained."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from handscroll.base.config import Config
from handscroll.tasks.task import Task, task_from
from handscroll.train.lora import LoRA
from handscroll.train.step import Memory


class Augment(Config):
    """New training rows from old ones (`data/table/augment.py`).

    swap: pairs of words change places; delete: words are left out; replace: words are replaced by what `model`, an
    encoder with a masked-LM head, puts in their places; translate: the text is translated into another language and
    back by `model`, which was tuned for the task translate or chats (`tasks/back_translation.py`).
    """

    way: Literal["swap", "delete", "replace", "translate"]
    share: float = Field(default=0.1, gt=0, le=1, description="share of the words")
    copies: int = Field(default=1, ge=1, description="new rows of each row")
    model: str = Field(default="", description="ways 'replace' and 'translate': what says the words, or translates")
    back: str = Field(default="", description="way 'translate': another model for the way back")
    language: str = Field(default="", description="way 'translate': of the texts, as a prompt names it")
    pivot: str = Field(default="", description="way 'translate': the language in between, as a prompt names it")
    max_tokens: int = Field(default=0, ge=0, description="way 'translate': of a translation; 0: as its task has it")

    @model_validator(mode="after")
    def _told(self):
        if (self.way in ("replace", "translate")) != bool(self.model):
            raise ValueError("model belongs to the ways 'replace' and 'translate', and they need it")
        translates = self.way == "translate"
        for name in ("back", "language", "pivot", "max_tokens"):
            if getattr(self, name) and not translates:
                raise ValueError(f"{name} belongs to way 'translate', not to '{self.way}': leave it out")
        if translates and self.share != type(self).model_fields["share"].default:
            raise ValueError("share is of words, and way 'translate' changes whole texts: leave it out")
        if translates and self.copies > 1:
            raise ValueError(
                f"copies is {self.copies}, but way 'translate' takes the likeliest translation, and every copy would "
                "be the same: leave it out"
            )
        if bool(self.language) != bool(self.pivot):
            raise ValueError("language and pivot, the language in between, belong together: give both or neither")
        return self


class TaskData(Config):
    """Tables of rows (`data/table/read.py`).

    What is held out of `train` chooses the weights that are kept, unless `valid` is given.

    `columns` names the column of a field where it is not found by itself. `second` is another data set of the same
    task, on which the result is scored too.
    """

    train: tuple[str, ...] = Field(min_length=1)
    valid: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    second: tuple[str, ...] = ()
    columns: dict[str, str] = Field(default_factory=dict, description="field = column")
    names: tuple[str, ...] = Field(default=(), description="columns of CSV and TSV files that do not name them")
    encoding: str | None = Field(default=None, description="of all tables; otherwise it is recognised")
    splits: dict[Literal["train", "valid", "test", "second"], str] = Field(
        default_factory=dict, description="of folders, archives and saved data sets: table = the split that it reads"
    )
    skip_broken: bool = Field(default=False, description="leave out and count lines that are broken")
    skip_unfit: bool = Field(default=False, description="leave out and count rows that do not fit the task")
    held_out: float = Field(default=0.1, ge=0, lt=1, description="share of train that is held out without valid")
    group: str | None = Field(default=None, description="column of rows that must stay on one side of the split")
    most: int = Field(default=0, ge=0, description="training rows that are used, drawn by the seed; 0: all")
    most_scored: int = Field(default=0, ge=0, description="rows of each scored table that are used; 0: all")
    augment: Augment | None = Field(default=None, description="new training rows made from old ones, counted")
    balance: Literal["", "over", "under"] = Field(
        default="", description="over: rows of rare labels are repeated; under: rows of common ones are left out"
    )
    licence: str = Field(default="", description="of the data, as its source states it; it goes into the model card")
    too_long: Literal["refuse", "skip"] = Field(default="refuse", description="skip: leave out and count such rows")

    @model_validator(mode="after")
    def _scored(self):
        if self.group is not None and self.valid:
            raise ValueError(
                "group decides which rows of train are held out, and none are where valid is given: leave one out"
            )
        for name, split in self.splits.items():
            if not getattr(self, name):
                raise ValueError(f"splits.{name} = '{split}', but {name} names no files: name them too")
        return self


class Tuning(Config):
    """How a model is tuned.

    way "full" trains all weights, "head" only the head, "last" the head and the last `layers` layers, "lora" low-rank
    updates (and the head). `layer_decay` multiplies the rate once more for each layer below the last.
    """

    way: Literal["full", "head", "last", "lora"] = "lora"
    layers: int = Field(default=0, ge=0, description="way 'last': how many")
    lora: LoRA | None = Field(
        default=None,
        description="way 'lora'; by default as the adapter over the model is, or rank 16 over attention",
    )
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    epochs: float = Field(default=3.0, gt=0, allow_inf_nan=False, description="how often each row is learned from")
    steps: int = Field(default=0, ge=0, description="updates; 0: as many as the epochs take")
    batch: int = Field(default=32, ge=1, description="rows of an update; no more than there are")
    length: int = Field(default=0, ge=0, description="most tokens of a row of whole examples; 0: as they need")
    lr: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="by default that of `rate`")
    warmup: float = Field(default=0.1, ge=0, lt=1, description="share of the updates")
    weight_decay: float = Field(default=0.01, ge=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    memory: Memory = Memory()
    result: Literal["best", "last"] = Field(
        default="best", description="weights of the least loss on the held-out rows, or those of the last update"
    )
    patience: int = Field(default=0, ge=0, description="validations without a better loss before it stops; 0: never")
    validations: int = Field(default=1, ge=1, description="validations in an epoch")
    seed: int = Field(default=0, ge=0)
    checkpoints: int = Field(default=2, ge=2, description="how many the run keeps, the newest ones")
    exposure: int = Field(default=0, ge=0, description="training answers with a number whose exposure the card tells")
    merge: bool = Field(default=False, description="write a whole model instead of an adapter")
    force: bool = Field(default=False, description="start even if the planner expects that it will not fit")

    @model_validator(mode="after")
    def _meant(self):
        if (self.way == "last") != bool(self.layers):
            raise ValueError("layers belongs to way 'last', and 'last' needs it")
        if self.lora is not None and self.way != "lora":
            raise ValueError(f"lora belongs to way 'lora', not to '{self.way}'")
        if self.lora is not None and self.lora.frozen == "bfloat16" and self.precision != "bfloat16":
            raise ValueError("lora.frozen = 'bfloat16' needs precision = 'bfloat16' (--precision bfloat16)")
        if self.result == "last" and self.patience:
            raise ValueError("patience ends a run whose loss no longer falls, for the best weights: leave result out")
        if self.way in ("head", "lora") and self.layer_decay != 1:
            raise ValueError(
                f"layer_decay is for the layers' own weights (way 'full' or 'last'), not for way '{self.way}'"
            )
        return self

    @property
    def adapter(self) -> LoRA:
        """The settings of a new low-rank update: rank 16 and twice the rank as alpha, unless they are given."""
        given = {} if self.lora is None else self.lora.model_dump(exclude_unset=True)
        return LoRA.parse({"rank": 16, "alpha": 2.0 * given.get("rank", 16), **given}, "tuning.lora")

    def rate(self, width: int) -> float:
        """The learning rate: `lr`, or what suits a model of this width.

        At a width of 768 it is 5e-5, for a LoRA 5e-4 and for a head 1e-3. Updates of Adam change the output of a layer
        in proportion to its width (Yang et al. 2022), so narrower models take more: a width of 384 takes twice as much,
        and no model takes more than four times as much.
        """
        usual = {"lora": 5e-4, "head": 1e-3}.get(self.way, 5e-5)
        return self.lr or usual * min(4.0, 768 / width)


class TuningRecipe(Config):
    """A tuning run. `model` is a checkpoint folder, a GGUF file or a hub id; `weights` as in `handscroll.load`.

    `adapter` over it, or `model` where that is an adapter whose base is here, is tuned further by way "lora" and merged
    by the others.
    """

    task: Annotated[SerializeAsAny[Task], BeforeValidator(task_from)]
    model: str
    adapter: str = Field(default="", description="an adapter folder over the model")
    weights: Literal["", "float"] = Field(default="", description="float: dequantise the weights of a GGUF file")
    data: TaskData
    tuning: Tuning = Tuning()
    threads: int = Field(default=0, ge=0, description="0: as many as there are processors")
