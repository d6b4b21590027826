"""Short tuning after a change of positions: a few steps on long packed text, with all weights or LoRA."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from handscroll.base.config import Config
from handscroll.base.errors import DataError
from handscroll.base.runs import latest_checkpoint
from handscroll.base.workload import Workload
from handscroll.data.masking import Masking
from handscroll.data.pack import Packed
from handscroll.data.sources import TokenSource
from handscroll.lm import LM
from handscroll.models.weights import read_json
from handscroll.objectives.causal import NextToken
from handscroll.objectives.masked import MaskedTokens
from handscroll.train.assemble import Updates
from handscroll.train.loop import Callbacks, OnRecord, train
from handscroll.train.lora import LoRA, add_lora, merge_lora, save_adapter, stands_apart
from handscroll.train.optim import Optimizer
from handscroll.train.planned import Planned, planned
from handscroll.train.rows import Files
from handscroll.train.run import RECIPE, Loop, Run, check_recipe, write_recipe
from handscroll.train.schedule import Schedule
from handscroll.train.step import Memory


class TuneSettings(Config):
    """Settings of the tuning: `files` of long text, and `steps` updates of `rows` rows of the target length.

    With `lr=None` the learning rate is 1e-4 for all weights and 1e-3 for LoRA.
    """

    files: tuple[str, ...] = Field(min_length=1)
    key: str | None = Field(default=None, description="key or column of the files that holds the text")
    encoding: str | None = Field(default=None, description="encoding of the files, where it is not recognised")
    skip_pictures: bool = Field(default=False, description="leave out pages of PDF files that are only pictures")
    steps: int = Field(default=100, ge=1)
    rows: int = Field(default=4, ge=1)
    lr: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    lora: LoRA | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    memory: Memory = Memory()
    force: bool = Field(default=False, description="start even if the planner expects that it will not fit")
    seed: int = Field(default=0, ge=0)
    save_every: int = Field(default=50, ge=1)
    end: bool = Field(default=True, description="end each document with the end token, where there is one")

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self.lr or (1e-4 if self.lora is None else 1e-3)


@dataclass(frozen=True)
class Tuning:
    """A tuning on rows of `to` tokens of `source`, in the run folder `folder`; `recipe` is what is noted there."""

    to: int
    settings: TuneSettings
    folder: Path
    source: TokenSource
    recipe: dict[str, Any]

    @classmethod
    def of(cls, lm: LM, to: int, settings: TuneSettings, folder: Path) -> "Tuning":
        """Look at all that a tuning needs, before hours of measurement. A tuning that was interrupted in `folder` will
        resume.

        Raises:
            DataError: the files hold less than one row of text. CapacityError: the tuning does not fit into memory.
            CheckpointError: `folder` holds another tuning.
        """
        text = Files(
            files=settings.files,
            key=settings.key,
            encoding=settings.encoding,
            skip_pictures=settings.skip_pictures,
            end=None if settings.end else False,
        )
        source = text.source(lm.tokenizer, lm.model.config.eos, lm.model.spec.reads == "forward")
        if source.total < to:
            raise DataError(
                f"the tuning text has {source.total} tokens, but one row needs {to}: give more or longer files"
            )
        how = settings.model_dump(mode="json", exclude={"memory", "force"})  # these two may change when a run resumes
        done = {"text": source.fingerprint, "to": to, **how, "lr": settings.rate}
        made = cls(to, settings, folder, source, {"tune": done, "from": lm.source})
        begun = folder / RECIPE
        before = read_json(begun) if begun.exists() else {}
        if "tune" in before and latest_checkpoint(folder) is None:
            begun.unlink()  # this tuning saved no checkpoint, so a new one may start with other settings
        check_recipe(folder, made.recipe | {"method": before.get("method")})  # which `run` compares
        made._planned(lm, keep=False)
        return made

    def run(self, lm: LM, method: str, on_record: OnRecord | None = None) -> dict[str, Any]:
        """Tune `lm`, which was lengthened by `method`, in place, and return a record of the tuning.

        Raises:
            CheckpointError: `folder` holds a tuning after another method.
            KeyboardInterrupt: a signal stopped it; what it has done is in `folder`.
        """
        settings, folder = self.settings, self.folder
        if settings.lora is not None:
            add_lora(lm.model, settings.lora, settings.seed)
        optimizer = Optimizer(name="adamw", lr=settings.rate, weight_decay=0.0)
        schedule = Schedule(name="cosine", warmup=max(1, settings.steps // 10), final=0.1)
        loop = Loop(steps=settings.steps, precision=settings.precision, save_every=settings.save_every)
        task = MaskedTokens() if lm.model.spec.both_ways else NextToken()
        objective = task.objective(lm.model)
        packed = Packed(self.source, self.to, seed=settings.seed, epochs=None)
        rows = task.rows(packed, self.to, settings.seed, lm.model, lm.tokenizer)
        write_recipe(folder, self.recipe | {"method": method})
        plan = self._planned(lm)
        run = Run(folder, lm.model, optimizer, schedule, loop, plan.memory)
        progress = train(run, Updates(rows, settings.rows, 1), objective, Callbacks(on_record=on_record))
        if progress.step < settings.steps:
            raise KeyboardInterrupt(
                f"the tuning in {folder} was stopped after {progress.step} of {settings.steps} steps"
            )
        plan.compare()
        if settings.lora is not None:
            if stands_apart(lm.model):
                save_adapter(lm.model, settings.lora, folder / "adapter", lm.source)
            merge_lora(lm.model)
        return self.recipe["tune"] | {"steps": progress.step, "tokens": progress.tokens}

    def _planned(self, lm: LM, keep: bool = True) -> Planned:
        workload = _workload(lm, self.to, self.settings, self.source)
        return planned(self.settings.memory, [workload], self.folder, force=self.settings.force, keep=keep)


def _workload(lm: LM, to: int, settings: TuneSettings, source: TokenSource) -> Workload:
    """The tuning's workload, for the planner."""
    lora = settings.lora
    changes: dict[str, Any] = {}
    if lora is not None:
        changes = {"lora": lora.rank, "lora_targets": len(lora.targets), "tables": lora.tables}
    return Workload(
        kind="extend",
        spec=lm.model.spec,
        **changes,
        length=to,
        micro=settings.rows,
        steps=settings.steps,
        packed=True,
        targets=Masking.rate if lm.model.spec.both_ways else 1.0,
        precision=settings.precision,
        device="cuda" if lm.model.device.type == "cuda" else "cpu",
        made=True,
        data_bytes=sum(document.nbytes for document in source.tokens),
    )
