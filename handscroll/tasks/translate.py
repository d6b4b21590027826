"""Translation of texts from one language, or kind of language, into another."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field as Setting

from handscroll.data.table.fields import Field
from handscroll.tasks.generative import USER, Generative
from handscroll.tasks.task import Example, Prediction


class Translate(Generative):
    """Translation from `source_language` into `target_language`, which are words for the prompt.

    `language` is that of the translations: it decides how they are cut into words for BLEU.
    """

    name: ClassVar[str] = "translate"
    summary: ClassVar[str] = "translations"
    metrics: ClassVar[tuple[str, ...]] = ("chrf", "bleu")
    smaller: ClassVar[str] = "a shorter text"
    prompts: ClassVar[Mapping[str, str]] = {
        "en": "Translate from {source_language} into {target_language}. Write only the translation.\n\n{source}",
        "zh": "请把下面的{source_language}翻译成{target_language}，只写译文。\n\n{source}",
    }
    source_language: str = Setting(default="Chinese", description="as the prompt names it")
    target_language: str = Setting(default="English", description="as the prompt names it")

    @property
    def fields(self) -> tuple[Field, ...]:
        return (
            Field("source", ("src", "input", "text", "original")),
            Field("translation", ("target", "tgt", "output", "reference"), False, truth=True),
            USER,
        )

    def baselines(self, train: Sequence[Example], examples: Sequence[Example]) -> Mapping[str, list[Prediction]]:
        """The source as it is, which is hard to beat between two forms of one language, and the nearest example."""
        return {"copy": [Prediction(one["source"]) for one in examples], **super().baselines(train, examples)}
