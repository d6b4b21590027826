"""Texts translated into another language and back, by models that were tuned for the task `translate` or that chat."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from handscroll.base.errors import ConfigError
from handscroll.data.table.augment import NoText
from handscroll.generate.asked import speaker_of
from handscroll.lm import LM, load
from handscroll.metrics.texts import language_told
from handscroll.models.weights import TASK, read_json
from handscroll.tasks.made import NOWHERE, Made
from handscroll.tasks.prompting import Prompting
from handscroll.tasks.recipe import Augment
from handscroll.tasks.task import Example, task_from
from handscroll.tasks.translate import Translate
from handscroll.tasks.tuned import tuned_folder

OnWork = Callable[[str, int, int], None]  # what is done, how much of it there is, and how much is done
NAMES = {"en": ("English", "Chinese"), "zh": ("中文", "英文")}  # by letters of texts: their language, that in between
CUT = "cut at the most tokens of a translation"
LONG = "too long for the context of the translator"


@dataclass(frozen=True)
class Translator:
    """A model, and the task translate for which it was tuned, if it was; any other model is asked as a chat."""

    lm: LM
    source: str
    tuned: Translate | None

    @classmethod
    def at(cls, source: str) -> "Translator":
        """
        Raises:
            ConfigError: the model does not write texts from left to right, or has neither the task nor a chat template.
        """
        folder = tuned_folder(source)
        task = None if folder is None else task_from(read_json(folder / TASK), str(folder / TASK))
        lm = load(folder or source)
        lm.model.spec.require(f"translation by {source}", one_text=True, forward=True, head=True)
        tuned = task if isinstance(task, Translate) else None
        if tuned is None:
            speaker_of(lm.tokenizer, lm.source, "chat")
        return cls(lm, source, tuned)

    def task(self, given: str, wanted: str, most: int) -> Translate:
        """How the model is asked; `most` are the most tokens of a translation, 0 those of the task.

        Raises:
            ConfigError: it was tuned for other languages.
        """
        if self.tuned is None:
            told = language_told([given, wanted]) or "en"
            task = Translate(language=told, source_language=given, target_language=wanted, form="chat")
            return _of(task, most)
        own = (self.tuned.source_language, self.tuned.target_language)
        if own != (given, wanted):
            raise ConfigError(
                f"{self.source} was tuned to translate from {own[0]} into {own[1]}, and is to translate from {given} "
                f"into {wanted}: name another model for this (data.augment.model there, data.augment.back for the way "
                "back), one that was tuned for it or one that chats, or other languages (data.augment.language and "
                "pivot)"
            )
        return _of(self.tuned, most)


class BackTranslation:
    """Translates texts into the language in between and back, each time the likeliest translation.

    Languages that are not given are those for which a model was tuned; otherwise English in between for texts of mostly
    Chinese letters, and Chinese for others.
    """

    def __init__(self, settings: Augment, on_work: OnWork = lambda what, total, done: None, made: Made = NOWHERE):
        """
        Raises:
            ConfigError: a model can neither chat nor was tuned to translate.
        """
        self._settings, self._on_work, self._made = settings, on_work, made
        self._there = Translator.at(settings.model)
        self._back = Translator.at(settings.back) if settings.back else self._there

    def __call__(self, texts: Sequence[str]) -> list[str | NoText]:
        """What comes back of each text, or why nothing does.

        Raises:
            ConfigError: a model was tuned for other languages.
        """
        own, pivot = self._languages(texts)
        there = self._there.task(own, pivot, self._settings.max_tokens)
        back = self._back.task(pivot, own, self._settings.max_tokens)

        def both(group: Sequence[str]) -> list[str | NoText]:
            return _translated(self._back.lm, back, _translated(self._there.lm, there, group))

        about = self._settings.model_dump(mode="json") | {"languages": [own, pivot]}
        progress = partial(self._on_work, f"translating into {pivot} and back")
        return self._made.each("translations", about, texts, both, progress)

    def _languages(self, texts: Sequence[str]) -> tuple[str, str]:
        """The language of the texts and the one in between."""
        if self._settings.language:
            return self._settings.language, self._settings.pivot
        if (there := self._there.tuned) is not None:
            return there.source_language, there.target_language
        if (back := self._back.tuned) is not None:
            return back.target_language, back.source_language
        return NAMES[language_told(texts) or "en"]


def _of(task: Translate, most: int) -> Translate:
    return task.model_copy(update={"max_tokens": most}) if most else task


def _translated(lm: LM, task: Translate, texts: Sequence[str | NoText]) -> list[str | NoText]:
    """The translation of each text; what is no text, or blank, stays so."""
    found = list(texts)
    places = [at for at, text in enumerate(texts) if isinstance(text, str) and text.strip()]
    examples = [Example(f"text {at + 1}", {"source": texts[at]}) for at in places]
    fits = [size <= lm.context for size in task.needed(lm, examples)]
    for at, fit in zip(places, fits, strict=True):
        if not fit:
            found[at] = NoText(LONG)
    asked = [(at, one) for at, one, fit in zip(places, examples, fits, strict=True) if fit]
    made = task.prompted(lm, [one for _, one in asked], Prompting())
    for (at, _), said in zip(asked, made, strict=True):
        found[at] = NoText(CUT) if said.more["finish"] == "length" else said.output
    return found
