"""What a sample asks, and what must stand in its text so that the question can be answered."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from handscroll.base.errors import DataError

Rule = Literal["all", "part", "alone", "alike"]


class Unfit(DataError):
    """A sample that does not fit into its length; its smallest form has `missing` tokens more, or a few beyond that."""

    def __init__(self, missing: int):
        super().__init__(f"the smallest form of the task needs {missing} tokens more")
        self.missing = missing


@dataclass(frozen=True)
class Ask:
    """A question about a text.

    `about` introduces the text (`{where}`: above or following), `lead` begins the answer. `references` are the right
    answers, judged by `rule` (`score.py`); `said` is the right answer as one would write it, `wrong` are answers that
    must not stand beside the right one. `room` are the tokens that RULER leaves for the answer; 0: what `said` needs.
    `details` say how the sample was made, for records and tests.
    """

    task: str
    about: str
    question: str
    lead: str
    references: tuple[str, ...]
    rule: Rule
    said: str
    room: int
    wrong: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Planted:
    """What a question needs in its text: sentences and documents at random places; `ordered` ones keep their order."""

    ask: Ask
    sentences: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()
    ordered: bool = False
