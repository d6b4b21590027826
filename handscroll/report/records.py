"""The records of evaluations that a report is made from, checked as they come out of JSON.

Unknown keys are allowed (a record may carry more than a report shows); unknown kinds are not.
Numbers are finite; null stands for what was not measured.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, model_validator

from handscroll.base.config import Config
from handscroll.base.errors import ConfigError, DataError, nearest

Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class Record(Config):
    """Base of the record kinds."""

    model_config = ConfigDict(extra="ignore")


class Perplexity(Record):
    """Mean loss in nats per token of each block of positions; `mean` is over all tokens counted.

    `positions` are block centres. `trained` is the length the checkpoint was trained for, where it is known.
    """

    model: str
    label: str
    length: int
    positions: tuple[Number, ...] = Field(min_length=1)
    loss: tuple[Number | None, ...]
    low: tuple[Number | None, ...] | None = None
    high: tuple[Number | None, ...] | None = None
    count: tuple[Count, ...] | None = None
    mean: Number | None = None
    tokens: Count | None = None
    windows: Count | None = None
    block: int | None = None
    sources: tuple[str, ...] = ()
    trained: int | None = None

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        for name in ("loss", "low", "high", "count"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.positions):
                raise ValueError(f"{name} has {len(values)} values for {len(self.positions)} positions")
        return self


class Needle(Record):
    """Share of needles found, `accuracy[depth][length]`; `samples` is the number of trials in each cell."""

    model: str
    label: str
    lengths: tuple[int, ...] = Field(min_length=1)
    depths: tuple[Share, ...] = Field(min_length=1)
    accuracy: tuple[tuple[Share | None, ...], ...]
    samples: Count
    format: str = ""
    seed: int | None = None
    trained: int | None = None

    @model_validator(mode="after")
    def _shape(self) -> Self:
        if len(self.accuracy) != len(self.depths) or any(len(row) != len(self.lengths) for row in self.accuracy):
            rows, columns = len(self.depths), len(self.lengths)
            raise ValueError(f"accuracy must have {rows} rows (depths) of {columns} values (lengths)")
        return self


class Candidate(Record):
    """One method of a bake-off."""

    method: str
    long_loss: Number | None
    short_loss: Number | None
    verdict: str = ""
    chosen: bool = False


class Candidates(Record):
    """The bake-off: every method tried at the target length."""

    target: int
    rows: tuple[Candidate, ...] = Field(min_length=1)
    trained: int | None = None


class PolicyRow(Record):
    """One cache policy: shares of the full cache promised and freed, distance from the exact cache, tasks."""

    policy: str
    budget: Share
    freed: Number
    kl: Number
    worst: Number
    same: Share
    needle: Share | None = None
    copying: Share | None = None
    sums: Share | None = None


class Policies(Record):
    """What cache policies free and cost, the exact cache first."""

    model: str
    length: int
    rows: tuple[PolicyRow, ...] = Field(min_length=1)


class Training(Record):
    """Loss of each step of a training run."""

    steps: tuple[Number, ...] = Field(min_length=1)
    loss: tuple[Number | None, ...]
    label: str = ""


class Sample(Record):
    """What the model wrote after a prompt."""

    prompt: str
    text: str
    label: str = ""


KINDS: Mapping[str, type[Record]] = {
    "perplexity": Perplexity,
    "needle": Needle,
    "candidates": Candidates,
    "policies": Policies,
    "training": Training,
    "sample": Sample,
}


def parse_records(records: Sequence[Mapping[str, Any]]) -> list[Record]:
    """Check each record by its kind.

    Raises:
        DataError: an unknown kind, a missing or malformed value; the message names the record by its number.
    """
    return [_parse(record, f"record {number}") for number, record in enumerate(records)]


def _parse(record: Mapping[str, Any], where: str) -> Record:
    if not isinstance(record, Mapping):
        raise DataError(f"{where} is a {type(record).__name__}; expected an object with a 'kind'")
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise DataError(f"{where}: unknown kind {kind!r}: {nearest(str(kind), KINDS)}")
    values = {name: value for name, value in record.items() if name != "kind"}
    try:
        return KINDS[kind].parse(values, f"{where} ({kind})")
    except ConfigError as error:
        raise DataError(str(error)) from None
