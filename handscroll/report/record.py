"""What all records of evaluations share: numbers, the certificate of what was read, and how a record came about."""

from typing import Annotated

from pydantic import ConfigDict, Field

from handscroll.base.config import Config

Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class Part(Config):
    """Base of what records consist of; keys that a report does not show are allowed."""

    model_config = ConfigDict(extra="ignore")


class Seen(Part):
    """The truncation certificate: tokens that were to be read, tokens that the model saw, the hash of the ids fed."""

    offered: Count
    seen: Count
    sha256: str

    @property
    def shown(self) -> dict[str, str]:
        """The values as a page shows them."""
        return {"offered": f"{self.offered:,}", "seen": f"{self.seen:,}", "hash": self.sha256[:16]}


class Made(Part):
    """How a record came about: the command, the seconds it took, the version of the package."""

    command: str = ""
    seconds: Number | None = None
    version: str = ""


class Record(Part):
    """Base of the record kinds."""

    certificate: Seen | None = None
    made: Made | None = None
