"""Answers in a document without a head: a model says them in words, and they are looked for in the document."""

from typing import ClassVar

from pydantic import Field as Setting

from handscroll.tasks.answer import Answer
from handscroll.tasks.evidence import place_of
from handscroll.tasks.generative import Framed
from handscroll.tasks.task import Example, Prediction
from handscroll.tasks.writer import Writer
from handscroll.text.pieces import Piece

NOWHERE = "what was said does not stand in the document word for word: it has no place"


class Located(Answer):
    """An answer in words, as the document writes it, with its place (`start` and `end`, as characters).

    One that does not stand there is given as it was said, without a place, and the prediction says so (`note`).
    """

    smaller: ClassVar[str] = "the task 'answer', which can read blocks (--task answer --set task.reading=blocks)"
    perplexity: bool = Setting(default=False, description="also score how likely the right answers are")

    def predicted(self, writer: Writer, example: Example, framed: Framed) -> Prediction:
        asked, document = framed(self.asked(example)), example["document"]
        said = writer.write(asked, self.max_tokens, example.place, self.smaller)
        text = said.text.strip()
        place = place_of(text, [Piece(0, len(document), document)])
        if place is None:
            return Prediction(text, {"start": None, "end": None, "note": NOWHERE, **said.counts})
        start, end = place
        return Prediction(document[start:end], {"start": start, "end": end, "said": text, **said.counts})
