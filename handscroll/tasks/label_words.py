"""Labels without tuning: the word of each label is scored as the answer, calibrated on inputs that say nothing.

A model likes some words before it has read anything. So the probability of each word is divided by its mean probability
after inputs without content, under the same examples (Zhao et al. 2021, "Calibrate before use", arXiv:2102.09690).
"""

from collections.abc import Sequence

import numpy as np

from handscroll.base.errors import DataError
from handscroll.data.encoded import Encoded
from handscroll.generate.asked import Form
from handscroll.lm import LM
from handscroll.tasks.conversation import untrained
from handscroll.tasks.prompting import Prompting
from handscroll.tasks.task import Example, OnDone, Prediction
from handscroll.tasks.writer import Writer, learned
from handscroll.text.chat.messages import Message

NOTHING = ("N/A", "[MASK]", "...")  # inputs without content
PROMPTS = {
    "en": "Which of these fits the text: {words}?\n\nText: {text}\n\nAnswer with one of them only.",
    "zh": "下面的文字属于哪一类：{words}？\n\n文字：{text}\n\n只回答类别。",
}
COMMAS = {"en": ", ", "zh": "、"}


class LabelWords:
    """Scores the words of labels as answers of a model to a prompt, after examples in the prompt."""

    def __init__(self, lm: LM, labels: Sequence[str], words: Sequence[str], prompt: str, language: str):
        """
        Raises:
            DataError: fewer than two labels, not one word for each, or two with one word.
        """
        words = list(words) or list(labels)
        if len(labels) < 2 or len(words) != len(labels) or len(set(words)) < len(words):
            raise DataError(
                f"labels {list(labels)} with the words {words}: name two labels or more (task.labels), and if words "
                "are given (task.words), a different one for each, in the order of the labels"
            )
        self._lm, self.labels, self._words = lm, tuple(labels), dict(zip(labels, words, strict=True))
        self._prompt, self._joined = prompt or PROMPTS[language], COMMAS[language].join(words)
        self._language = language

    def asked(self, text: str) -> str:
        """The prompt for a text."""
        return self._prompt.replace("{words}", self._joined).replace("{text}", text)

    def said(
        self,
        pairs: Sequence[tuple[Example, str]],
        shots: Sequence[Sequence[tuple[str, str]]],
        prompting: Prompting,
        form: Form,
        on_done: OnDone,
    ) -> list[Prediction]:
        """What is said of each (example, text), after its shots (text, label).

        Raises:
            CapacityError: a prompt exceeds the context; nothing was said of any.
        """
        writer, found = Writer(self._lm, form, prompting.store), list[Prediction]()
        for (example, text), before in zip(pairs, shots, strict=True):
            self._answered(writer, before, text, prompting.known(example, self._language), example.place)
        if pairs and prompting.fixed:
            writer.keep([*self._turns(shots[0]), _turn("user", self.asked(pairs[0][1]))])
        known: dict[tuple[tuple[str, str], ...], np.ndarray] = {}
        for (example, text), before in zip(pairs, shots, strict=True):
            notes = prompting.known(example, self._language)
            logs = self._logs(writer, before, text, notes, example.place)
            key = tuple(before)
            if key not in known:
                bare = [_shares(self._logs(writer, before, empty, "", example.place)) for empty in NOTHING]
                known[key] = np.mean(bare, axis=0)
            chances = _shares(logs - np.log(known[key]))
            given = dict(zip(self.labels, chances.tolist(), strict=True))
            plain = self.labels[int(logs.argmax())]
            found.append(
                Prediction(self.labels[int(chances.argmax())], {"probabilities": given, "uncalibrated": plain})
            )
            on_done(len(found))
        return found

    def _logs(self, writer: Writer, shots: Sequence[tuple[str, str]], text: str, notes: str, place: str) -> np.ndarray:
        """The log-probability of the word of every label, with the end of the turn behind it."""
        examples = self._answered(writer, shots, text, notes, place)
        return np.array([writer.surprise(one).logprob for one in examples])

    def _answered(
        self, writer: Writer, shots: Sequence[tuple[str, str]], text: str, notes: str, place: str
    ) -> list[Encoded]:
        """The prompt with the word of each label as its answer.

        Raises:
            CapacityError: one exceeds the context.
        """
        before = untrained(self._turns(shots))
        asked = f"{notes}\n\n{self.asked(text)}" if notes else self.asked(text)
        turns = [*before, _turn("user", asked)]
        examples = [self._last(writer, [*turns, _turn("assistant", word)], place) for word in self._words.values()]
        writer.check(max(map(len, examples)), 0, place, "fewer shots" if shots else "")
        return examples

    def _turns(self, shots: Sequence[tuple[str, str]]) -> list[Message]:
        """Examples as earlier turns."""
        found: list[Message] = []
        for text, label in shots:
            found += [_turn("user", self.asked(text)), _turn("assistant", self._words[label])]
        return found

    def _last(self, writer: Writer, messages: Sequence[Message], place: str) -> Encoded:
        return learned(self._lm, writer.form, messages, place)[-1]


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _shares(logs: np.ndarray) -> np.ndarray:
    shares = np.exp(logs - logs.max())
    return shares / shares.sum()
