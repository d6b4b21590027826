"""Code with a hole in it, completed from what stands before and after, with the model's own tokens for that."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self
from zlib import crc32

import numpy as np
from pydantic import Field as Setting
from pydantic import model_validator

from handscroll.base.errors import ConfigError, DataError
from handscroll.data.encoded import Encoded
from handscroll.data.infill import Hole, Infill, Order, hole_in
from handscroll.data.table.fields import Field
from handscroll.data.table.table import Ledger, Table
from handscroll.lm import LM
from handscroll.tasks.generative import USER, Generative, lost
from handscroll.tasks.prompting import Prompting
from handscroll.tasks.task import Example, OnDone, Part, Prediction
from handscroll.tasks.writer import Writer

PARTS = ("prefix", "middle", "suffix")
UNUSED = ("prompt", "system", "language", "form")  # settings of other tasks whose answer is a text


class Complete(Generative):
    """What stands in the hole of a code file (fill in the middle).

    A row holds `prefix`, `middle` and `suffix`, or a whole file as `text`: then `seed` and the text decide which
    lines are taken out, of an excerpt of at most `lines` lines; every excerpt is counted.
    """

    name: ClassVar[str] = "complete"
    summary: ClassVar[str] = "code with a hole: what stands in it"
    metrics: ClassVar[tuple[str, ...]] = ("code-match", "edit-similarity")
    smaller: ClassVar[str] = "an excerpt of fewer lines (task.lines)"
    lines: int = Setting(default=60, ge=3, description="the most lines of an excerpt of a whole file")
    most: int = Setting(default=2, ge=1, description="the most lines of a hole in a whole file")
    each: int = Setting(default=1, ge=1, description="holes of a whole file")
    order: Order = Setting(default="psm", description="psm: what stands before it comes first; spm: what stands behind")
    seed: int = Setting(default=0, ge=0, description="of excerpts and holes")
    max_tokens: int = Setting(default=64, ge=1, description="the most tokens that are written")

    @model_validator(mode="after")
    def _code_alone(self) -> Self:
        for name in UNUSED:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"a model that fills holes reads code alone, without a {name}: leave it out")
        return self

    @property
    def fields(self) -> tuple[Field, ...]:
        return (
            Field("prefix", ("before",), False, "any"),
            Field("middle", ("canonical_solution", "target"), False, "any"),
            Field("suffix", ("after",), False, "any"),
            Field("text", ("code", "content", "source"), False, "any"),
            USER,
        )

    @property
    def target(self) -> str:
        return "middle"

    def read(self, table: Table, columns: Mapping[str, str], skip_unfit: bool = False) -> Part:
        part = super().read(table, columns, skip_unfit)
        step, found = Ledger(), list[Example]()
        for example in part.examples:
            if "prefix" in example.values or "suffix" in example.values:
                found.append(example)
                continue
            made = self._holes(example)
            if not made:
                step.leave_out("files with no lines that can be taken out", example.place)
            for number, (hole, excerpt) in enumerate(made):
                found.append(Example(example.place, {**_named(hole), "path": example.values.get("path", "")}))
                if excerpt:
                    step.repair("excerpts of whole lines, since the file is longer", example.place)
                if number:
                    step.add("further holes of a file", example.place)
        if not found:
            raise DataError(f"no row is left:\n{step.onto(part.account)}")
        return replace(part, examples=tuple(found), account=step.onto(part.account))

    def ready(self, lm: LM, seed: int) -> LM:
        Infill.of(lm.tokenizer)
        return super().ready(lm, seed)

    def learned(self, lm: LM, example: Example) -> list[Encoded]:
        if self.truth(example) is None:
            raise DataError(f"{example.place}: no middle; training needs one")
        hole = Hole(*(example.values.get(name) or "" for name in PARTS))
        return [Infill.of(lm.tokenizer).encode(hole, self.order, example.place)]

    def checked(self, examples: Sequence[Example]) -> Sequence[Example]:
        return examples

    def likeness(self, example: Example) -> str:
        return f"{example.values.get('prefix', '')}\n{example.values.get('suffix', '')}"

    def prompted(
        self, lm: LM, examples: Sequence[Example], prompting: Prompting, on_done: OnDone = lambda done: None
    ) -> list[Prediction]:
        if prompting.shots or prompting.notes:
            raise ConfigError(
                "a model that fills holes reads code alone, so examples before it mean nothing: ask with --shots 0 and "
                "without --examples and --profile, or tune a model (handscroll finetune complete)"
            )
        writer, infill = Writer(lm, "plain", prompting.store, self.stop), Infill.of(lm.tokenizer)
        self.check_sizes(writer, examples)
        found: list[Prediction] = []
        ends = frozenset({infill.end, *lm.model.config.eos})
        for example in examples:
            asked = self.prompt_ids(writer, example)
            said = writer.after(asked, self.max_tokens, example.place, self.smaller, ends)
            known = self.perplexity and self.truth(example) is not None
            more = lost(writer, self.learned(lm, example)[0]) if known else {}
            found.append(Prediction(said.text, {**said.counts, **more}))
            on_done(len(found))
        return found

    def prompt_ids(self, writer: Writer, example: Example) -> list[int]:
        infill = Infill.of(writer.lm.tokenizer)
        return infill.prompt(example.values.get("prefix") or "", example.values.get("suffix") or "", self.order)

    def baselines(self, train: Sequence[Example], examples: Sequence[Example]) -> Mapping[str, list[Prediction]]:
        """The line before the hole once more."""
        before = [(one.values.get("prefix") or "\n").splitlines(keepends=True)[-1] for one in examples]
        return {"line before": [Prediction(line) for line in before]}

    def truth(self, example: Example) -> Any:
        return example.values.get("middle") or None

    def _holes(self, example: Example) -> list[tuple[Hole, bool]]:
        """Holes of a whole file, and whether each is in an excerpt of it."""
        text = example.values.get("text")
        if not isinstance(text, str):
            raise DataError(f"{example.place}: neither prefix and suffix nor the text of a file; name them (--map)")
        lines, found = text.splitlines(keepends=True), []
        for turn in range(self.each):
            drawn = np.random.default_rng([self.seed, turn, crc32(text.encode())])
            first = int(drawn.integers(0, max(1, len(lines) - self.lines + 1)))
            hole = hole_in("".join(lines[first : first + self.lines]), drawn, "line", self.most)
            if hole is not None:
                found.append((hole, len(lines) > self.lines))
        return found


def _named(hole: Hole) -> dict[str, str]:
    return dict(zip(PARTS, hole, strict=True))
