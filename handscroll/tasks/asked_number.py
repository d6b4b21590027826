"""Numbers without tuning: a model is asked for one, and the first number of its answer is taken."""

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field as Setting

from handscroll.data.table.fields import Field
from handscroll.tasks.generative import Framed, Generative
from handscroll.tasks.task import Example, Prediction
from handscroll.tasks.writer import Writer

PROMPTS = {
    "en": "Which number fits the text?{range}\n\nText: {text}\n\nAnswer with one number only.",
    "zh": "哪个数字适合下面的文字？{range}\n\n文字：{text}\n\n只回答一个数字。",
}
RANGES = {"en": " The numbers lie between {low} and {high}.", "zh": "数字在{low}和{high}之间。"}
WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"  # commas may stand between thousands
NUMBER = re.compile(rf"(?:(?<![a-z0-9)])[-+])?(?:{WHOLE}(?:\.\d+)?|(?<!\w)\.\d+)(?:e[-+]?\d+)?", re.IGNORECASE)
NONE_SAID = "no number was said: the mean of the examples stands for it"
NOTHING = "no number was said, and without examples no mean stands for it"


class AskedNumber(Generative):
    """A question about a text that a number answers. An example holds both: `question` and `number`, as a text.

    Where no number is said, `fallback` stands for it, or nothing, and the prediction says so (`note`).
    """

    name: ClassVar[str] = "regress"
    summary: ClassVar[str] = "numbers that a model says"
    max_tokens: int = Setting(default=16, ge=1, description="the most tokens of an answer")
    perplexity: bool = Setting(default=False, description="also score how likely the right answers are")
    prompt: str = Setting(default="{question}", description="what the user says")
    fallback: float | None = Setting(default=None, description="what stands for a number that was not said")

    @property
    def fields(self) -> tuple[Field, ...]:
        return Field("text"), Field("question"), Field("number", required=False, truth=True)

    def likeness(self, example: Example) -> str:
        return example["text"]

    def predicted(self, writer: Writer, example: Example, framed: Framed) -> Prediction:
        answer = super().predicted(writer, example, framed)
        more = {"said": answer.output, **answer.more}
        number = number_in(answer.output)
        if number is not None:
            return Prediction(number, more)
        return Prediction(self.fallback, {**more, "note": NOTHING if self.fallback is None else NONE_SAID})


def question(text: str, template: str, language: str, numbers: Sequence[float]) -> str:
    """What is asked about a text: `template`, by default the prompt of the language, with {text} and {range} in it.

    The range is a sentence with the least and the greatest of `numbers`; it is left out unless they differ.
    """
    told = ""
    if len(set(numbers)) > 1:
        told = RANGES[language].format(low=written(min(numbers)), high=written(max(numbers)))
    return (template or PROMPTS[language]).replace("{range}", told).replace("{text}", text)


def written(number: float) -> str:
    """A number as a person writes it: without a fraction where it has none."""
    return f"{number:.12g}"


def number_in(answer: str) -> float | None:
    """The first number of an answer; None if there is none. Commas between thousands belong to it."""
    found = NUMBER.search(unicodedata.normalize("NFKC", answer).replace("−", "-"))
    number = None if found is None else float(found[0].replace(",", ""))
    return number if number is not None and math.isfinite(number) else None
