"""The rows of a run: the streams of its stages, the windows that validate it, and what of its texts is in neither."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from handscroll.base.errors import DataError
from handscroll.data.batch import Batch
from handscroll.data.row import Row
from handscroll.data.sources import TokenSource
from handscroll.data.stream import Chain, LeftOut, Mixture, Stream, Take
from handscroll.data.windows import SlidingWindows
from handscroll.models.model import Model
from handscroll.text.tokenizer import Tokenizer
from handscroll.train.assemble import Updates
from handscroll.train.recipe import Recipe, Stage, Validation
from handscroll.train.rows import RowData, TextData

Rows = Sequence[dict[str, Stream[Row]]]  # of each stage: its kinds of rows by name, before the objective changes them


def row_streams(recipe: Recipe, text: TokenSource, tokenizer: Tokenizer) -> Rows:
    """The rows of every stage. Each stage and each kind has its own seed.

    Raises:
        DataError: the text does not suit a kind of rows, or the rows of a stage would end before its updates.
    """
    found = []
    for number, stage in enumerate(recipe.stages):
        seed = _seed(recipe, number)
        names = enumerate(sorted(stage.mix))
        rows = {name: row_stream(recipe.data[name], text, tokenizer, stage, seed + at) for at, name in names}
        if stage.grow is None:  # such a stage may end before its rows do
            _check_enough(number, stage, rows, _mixed(recipe, number, rows))
        found.append(rows)
    return found


def row_stream(data: RowData, text: TokenSource, tokenizer: Tokenizer, stage: Stage, seed: int) -> Stream[Row]:
    """The rows of one kind for a stage."""
    if isinstance(data, TextData) and data.order == "reading":
        return data.lanes(text, stage.length, seed, stage.rows)
    return data.stream(text, tokenizer, stage.length, seed)


def updates(recipe: Recipe, rows: Rows, tokenizer: Tokenizer, model: Model) -> Chain[list[Batch]]:
    """The whole curriculum as one stream of updates."""
    chain = []
    for number, (stage, kinds) in enumerate(zip(recipe.stages, rows, strict=True)):
        seed = _seed(recipe, number) + len(kinds) + 1
        made = recipe.objective.rows(_mixed(recipe, number, kinds), stage.length, seed, model, tokenizer)
        chain.append(Take(Updates(made, stage.rows, stage.micro or stage.rows), stage.steps))
    return Chain(chain)


def _mixed(recipe: Recipe, number: int, rows: dict[str, Stream[Row]]) -> Stream[Row]:
    """The rows of stage `number` in one stream."""
    if len(rows) == 1:
        return next(iter(rows.values()))
    weights = [recipe.stages[number].mix[name] for name in rows]
    return Mixture(list(rows.values()), weights, _seed(recipe, number) + len(rows))


def _seed(recipe: Recipe, stage: int) -> int:
    """The seed of a stage's first kind of rows. Those of the other kinds, the mixture and the objective follow it."""
    return recipe.seed * 10_007 + stage * 101


def _check_enough(number: int, stage: Stage, rows: dict[str, Stream[Row]], mixed: Stream[Row]) -> None:
    needed = stage.steps * stage.rows
    there = mixed.at_most(needed)
    if there >= needed:
        return
    once = ", ".join(f"'{name}'" for name, one in rows.items() if one.at_most(needed) < needed)
    fewer = f"lower steps to {there // stage.rows:,}" if there >= stage.rows else "make an update of fewer rows"
    raise DataError(
        f"stages.{number}: {stage.steps:,} updates of {stage.rows} rows need {needed:,} rows of {stage.length} tokens, "
        f"but after {there:,} there are no more rows {once}, which read the text once: {fewer}, give more text, or "
        "choose a sampling that reads it again ('packed', 'cyclic')"
    )


@dataclass(frozen=True)
class HeldOut:
    """The windows that validate a run, of `windows` that the text has, and what of the text is in no window."""

    length: int
    rows: list[Row]
    windows: int
    left_out: tuple[LeftOut, ...]


def held_out(settings: Validation, tokenizer: Tokenizer, config: Any) -> HeldOut:
    """The windows of the held-out text, spread evenly over it; `config` is that of the model."""
    text = settings.source(tokenizer, config.eos, config.spec.reads == "forward")
    windows = SlidingWindows(text, settings.length, tails="drop")
    count = min(settings.windows, len(windows))
    rows = [windows.row(number * len(windows) // count) for number in range(count)]
    return HeldOut(settings.length, rows, len(windows), windows.left_out)


@dataclass(frozen=True)
class Account:
    """What of the texts of a run is in no row, by place, and how many of the held-out windows are read."""

    left_out: list[tuple[str, LeftOut]]
    held: HeldOut | None = None

    @classmethod
    def of(cls, rows: Rows, held: HeldOut | None) -> "Account":
        found = [
            (f"stages.{number}, rows '{name}'", one)
            for number, kinds in enumerate(rows)
            for name, stream in kinds.items()
            for one in stream.left_out
        ]
        return cls([*found, *(("validation", one) for one in (held.left_out if held else ()))], held)

    def record(self) -> dict[str, Any]:
        """The account as plain JSON."""
        windows = None if self.held is None else {"windows": len(self.held.rows), "of": self.held.windows}
        return {"left_out": [{"where": where, **asdict(one)} for where, one in self.left_out], "validation": windows}

    def lines(self) -> list[str]:
        """What a person reads before the run; nothing, if all of the text is in rows."""
        said = [f"{where}: {one}" for where, one in self.left_out]
        if self.held is None:
            return said
        read = f"{len(self.held.rows)} of {self.held.windows:,} windows of {self.held.length} tokens are read"
        return [*said, f"validation: {read}"]
