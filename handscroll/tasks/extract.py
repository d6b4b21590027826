"""Answers that stand in a document word for word, found by a head that tells where they begin and end."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field as Setting
from rich.text import Text

from handscroll.base.errors import DataError
from handscroll.base.spec import HeadSpec
from handscroll.data.row import IGNORED, Row
from handscroll.data.table.fields import Field
from handscroll.data.table.table import Ledger, Table
from handscroll.generate.asked import Form
from handscroll.lm import LM
from handscroll.metrics.scores import Measured
from handscroll.metrics.table import Settings, measure
from handscroll.models.labels import OVERLAP
from handscroll.models.model import Model
from handscroll.models.new import with_head
from handscroll.objectives.objective import Objective
from handscroll.objectives.spans import BEGINS, ENDS, Spans
from handscroll.search.similar import Similar
from handscroll.tasks.language import check_language
from handscroll.tasks.located import Located
from handscroll.tasks.prompting import Prompting
from handscroll.tasks.task import ANY, LEFT_OUT, Example, OnDone, Part, Prediction, Task
from handscroll.text.framed import Framed, framed
from handscroll.text.pieces import sentences

AROUND = 60  # characters that a message shows


class Extract(Task):
    """Answers to questions as parts of a document (SQuAD's form: context, question, answers with their starts).

    A document longer than the context is read in windows that overlap. Each window is a training row; where the answer
    is not in it, the row points at its first token. A document of which no window holds the whole answer is one row,
    longer than the context, so that it is refused, or left out and counted, as rows are that are too long.
    """

    name: ClassVar[str] = "extract"
    summary: ClassVar[str] = "answers that stand in a document, with their place"
    language: Literal["en", "zh"] = Setting(default="en", description="of the answers, for scores")
    form: Form = Setting(default="auto", description="without tuning: chat, by the model's template, or plain text")
    max_tokens: int = Setting(default=48, ge=1, description="without tuning: the most tokens of an answer")

    @property
    def fields(self) -> tuple[Field, ...]:
        return (
            Field("context", ("document", "passage", "paragraph", "text", "article")),
            Field("question", ("query",)),
            Field("answers", ("answer", "output", "target"), False, "answers", truth=True),
        )

    def read(self, table: Table, columns: Mapping[str, str], skip_unfit: bool = False) -> Part:
        part, step, kept = super().read(table, columns, skip_unfit), Ledger(), list[Example]()
        for example in part.examples:
            given = _answers(example)
            missing = bool(given) and not self._places(example)
            if missing and not skip_unfit:
                raise DataError(
                    f"{example.place}: the answer {given[0]['text'][:AROUND]!r} does not stand in its context; repair "
                    "the row, or leave such rows out, counted (--skip-unfit)"
                )
            if missing:
                step.leave_out("rows whose answers do not stand in their context", example.place)
            else:
                kept.append(example)
        if not kept:
            raise DataError(f"no row is left:\n{step.onto(part.account)}")
        return replace(part, examples=tuple(kept), account=step.onto(part.account))

    @property
    def compared(self) -> bool:
        return False

    def checked(self, examples: Sequence[Example]) -> Sequence[Example]:
        check_language(self.language, [self.truth(example) for example in examples], examples)
        return examples

    def given(self, example: Example) -> tuple[str, str]:
        return example["context"], example["question"]

    def settled(self, examples: Sequence[Example], lm: LM) -> Task:
        return self

    def ready(self, lm: LM, seed: int) -> LM:
        lm.model = with_head(lm.model, HeadSpec(kind="answer"), torch.Generator().manual_seed(seed))
        return lm

    def rows(self, lm: LM, example: Example) -> list[Row]:
        return [row for _, row in self._trained(lm, example)]

    def objective(self, model: Model) -> Objective:
        return Spans()

    def reach(self, context: int) -> str:
        return f"Documents of more than {context:,} tokens are read in windows that overlap, and do not see each other."

    def predict(self, lm: LM, examples: Sequence[Example], on_done: OnDone = lambda done: None) -> list[Prediction]:
        found: list[Prediction] = []
        for example in examples:
            best = lm.answers(example["question"], example["context"], windows=True)[0]
            windows = len(self._windows(lm, example, lm.context))
            place = {"start": best.start, "end": best.end, "score": best.score, "windows": windows}
            found.append(Prediction(best.text, place))
            on_done(len(found))
        return found

    def prompted(
        self, lm: LM, examples: Sequence[Example], prompting: Prompting, on_done: OnDone = lambda done: None
    ) -> list[Prediction]:
        """An answer is asked for in words and looked for in the document (`located.py`)."""
        teller = Located(language=self.language, form=self.form, max_tokens=self.max_tokens)
        shots = replace(prompting, examples=[_in_words(one) for one in prompting.examples])
        return teller.prompted(lm, [_in_words(one) for one in examples], shots, on_done)

    def baselines(self, train: Sequence[Example], examples: Sequence[Example]) -> Mapping[str, list[Prediction]]:
        """The sentence of the document that is most like the question (BM25), the first where two are alike."""
        found = []
        for one in examples:
            parts = [part.text.strip() for part in sentences(one["context"])]
            found.append(Prediction(parts[Similar(parts).best(one["question"], 1)[0]]))
        return {"most similar sentence": found}

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, Measured]:
        wanted = [self.truth(example) for example in examples]
        if lacking := [e.place for e, truth in zip(examples, wanted, strict=True) if not truth]:
            raise DataError(f"{lacking[0]}: no answer to compare with ({len(lacking)} rows have none)")
        given = [prediction.output for prediction in predictions]
        return measure(["token-f1", "exact-match"], wanted, given, Settings(language=self.language))

    def truth(self, example: Example) -> Any:
        return list(dict.fromkeys(one["text"] for one in _answers(example))) or None

    def shown(self, lm: LM, example: Example) -> list[Text]:
        texts = list[Text]()
        for number, (one, row) in enumerate(self._trained(lm, example)):
            first, last = int(np.argmax(row.targets > 0)), len(row.targets) - 1 - int(np.argmax(row.targets[::-1] > 0))
            ids = one.ids
            decode = lm.tokenizer.decode
            shown = Text(f"{example.place}, window {number + 1}: {len(ids):,} tokens\n")
            shown.append(decode(ids[:first], special=True) + " ⟦", "dim")
            shown.append(decode(ids[first : last + 1], special=True), "green")
            texts.append(shown.append("⟧ " + decode(ids[last + 1 :], special=True), "dim"))
        return texts

    def _trained(self, lm: LM, example: Example) -> list[tuple[Framed, Row]]:
        """The training rows of a document, with what stands in each.

        Raises:
            DataError: there is no answer, or no tokens stand for all of it.
        """
        places = self._places(example)
        if not places:
            raise DataError(f"{example.place}: no answer; training needs one that stands in the context: {LEFT_OUT}")
        for most in (lm.context, ANY):
            made = [(one, _row(one, *places[0])) for one in self._windows(lm, example, most)]
            if any(row.targets[0] == IGNORED for _, row in made):
                return made
        start, end = places[0]
        raise DataError(
            f"{example.place}: the tokenizer leaves out where the answer {example['context'][start:end][:AROUND]!r} "
            "begins or ends; repair the row"
        )

    def _windows(self, lm: LM, example: Example, most: int) -> list[Framed]:
        """The rows of at most `most` tokens in which a document is read; with the context those of `lm.answers`."""
        return framed(lm.tokenizer, (example["question"], example["context"]), most, True, int(OVERLAP * most) // 2)

    def _places(self, example: Example) -> list[tuple[int, int]]:
        """Where the answers stand in the context, as characters, without the blanks around them."""
        found, context = [], example["context"]
        for one in _answers(example):
            text, start = one["text"].strip(), one["answer_start"]
            if isinstance(start, int):
                start += len(one["text"]) - len(one["text"].lstrip())
            pointed = isinstance(start, int) and start >= 0 and context.startswith(text, start)
            at = start if pointed else context.find(text)
            if at >= 0 and text:
                found.append((at, at + len(text)))
        return found


def _answers(example: Example) -> Sequence[Mapping[str, Any]]:
    """The answers and where they are said to begin."""
    return example.values.get("answers") or ()


def _in_words(example: Example) -> Example:
    """The same for a task that answers in words: its fields are named otherwise."""
    return Example(example.place, {**example.values, "document": example["context"], "answer": _answers(example)})


def _row(one: Framed, start: int, end: int) -> Row:
    """A window with the tokens at which the answer (characters `start` to `end`) begins and ends."""
    inside = [at for at, part in enumerate(one.parts) if part == 1]
    covered = [at for at in inside if one.spans[at][0] < end and one.spans[at][1] > start]
    spans = [one.spans[at] for at in covered]
    whole = bool(spans) and spans[0][0] <= start and spans[-1][1] >= end
    targets, labels = (np.full(len(one.ids), IGNORED, dtype=np.int64) for _ in range(2))
    labels[[0, *inside]] = 0
    first, last = (covered[0], covered[-1]) if whole else (0, 0)
    targets[[first, last]] = BEGINS + ENDS if first == last else [BEGINS, ENDS]
    kinds = np.array(one.kinds, dtype=np.int64) if any(one.kinds) else None
    return Row(np.array(one.ids, dtype=np.int64), targets, 0, 0, kinds=kinds, labels=labels)
