"""Summaries of documents: read whole, or in pieces that are summarised each (map-reduce) or in turn (refine)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field as Setting

from handscroll.base.errors import CapacityError
from handscroll.data.table.fields import Field
from handscroll.lm import LM
from handscroll.tasks.generative import USER, Framed, Generative
from handscroll.tasks.task import Example, Prediction
from handscroll.tasks.writer import Writer, Written
from handscroll.text.pieces import pieces, sentences

LEAD = 3  # sentences of a document that stand for its summary


class Summarise(Generative):
    """Summaries of documents, or of what they say to a `query`.

    strategy: "whole" reads the document in one prompt. "map-reduce" summarises pieces of at most `piece` tokens, and
    then the summaries. "refine" goes through the pieces and renews the summary at each (both in Chang et al. 2024,
    arXiv:2310.00785). A model is trained on whole documents.
    """

    name: ClassVar[str] = "summarise"
    summary: ClassVar[str] = "summaries of documents, whole or in pieces"
    metrics: ClassVar[tuple[str, ...]] = ("rouge-l", "rouge-1", "rouge-2")
    smaller: ClassVar[str] = "pieces of the document (task.strategy=map-reduce or refine)"
    prompts: ClassVar[Mapping[str, str]] = {
        "en": "Summarise the following text in a few sentences.\n\n{document}\n\nSummary:",
        "zh": "请用几句话概括下面的文字。\n\n{document}\n\n摘要：",
    }
    about: ClassVar[Mapping[str, str]] = {
        "en": "{document}\n\nSay in a few sentences what the text above says about this: {query}",
        "zh": "{document}\n\n请用几句话说明上文关于以下问题的内容：{query}",
    }
    renewed: ClassVar[Mapping[str, str]] = {
        "en": "Summary so far: {summary}\n\nThe text goes on:\n\n{document}\n\nWrite a new summary of all in a few "
        "sentences.",
        "zh": "到目前为止的摘要：{summary}\n\n下文：\n\n{document}\n\n请用几句话写出全文的新摘要。",
    }
    strategy: Literal["whole", "map-reduce", "refine"] = Setting(default="whole", description="how it is read")
    piece: int = Setting(default=2048, ge=16, description="the most tokens of a piece")
    max_tokens: int = Setting(default=192, ge=1, description="the most tokens of a summary")

    @property
    def fields(self) -> tuple[Field, ...]:
        return (
            Field("document", ("text", "article", "source", "content", "transcript", "input", "dialogue")),
            Field("summary", ("abstract", "target", "output", "highlights", "answer"), False, truth=True),
            Field("query", ("question",), False),
            USER,
        )

    def given(self, example: Example) -> tuple[str, str]:
        return example["document"], example.values.get("query") or ""

    def standard(self, example: Example) -> str:
        return (self.about if example.values.get("query") else self.prompts)[self.language]

    def baselines(self, train: Sequence[Example], examples: Sequence[Example]) -> Mapping[str, list[Prediction]]:
        """The first sentences of the document."""
        return {"lead": [Prediction("".join(s.text for s in sentences(one["document"])[:LEAD])) for one in examples]}

    def needed(self, lm: LM, examples: Sequence[Example]) -> list[int]:
        return super().needed(lm, examples) if self.strategy == "whole" else [0] * len(examples)

    def reach(self, context: int) -> str:
        if self.strategy == "whole":
            return super().reach(context)
        return f"Documents are read in pieces of {self.piece:,} tokens, whose summaries are joined ({self.strategy})."

    def predicted(self, writer: Writer, example: Example, framed: Framed) -> Prediction:
        if self.strategy == "whole":
            return super().predicted(writer, example, framed)
        run = _Run(self, writer, example, framed)
        text = run.reduced() if self.strategy == "map-reduce" else run.refined()
        return Prediction(text, run.counts)


class _Run:
    """One document in pieces, with the tokens that were read and written for it."""

    def __init__(self, task: Summarise, writer: Writer, example: Example, framed: Framed):
        self._task, self._writer, self._example, self._framed = task, writer, example, framed
        self._said: list[Written] = []
        self._pieces = [one.text for one in pieces(example["document"], writer.lm.tokenizer, task.piece)]

    @property
    def counts(self) -> dict[str, Any]:
        each = [one.counts["tokens"] for one in self._said]
        tokens = {name: sum(one[name] for one in each) for name in each[0]}
        last = self._said[-1].finish
        return {"pieces": len(self._pieces), "calls": len(self._said), "finish": last, "tokens": tokens}

    def reduced(self) -> str:
        """Summaries of the pieces, then of the summaries, until one is left.

        Raises:
            CapacityError: the summaries do not become shorter.
        """
        texts = self._pieces
        while True:
            said = [self._of(text) for text in texts]
            if len(said) == 1:
                return said[0]
            before, tokenizer = len(texts), self._writer.lm.tokenizer
            texts = [one.text for one in pieces("\n\n".join(said), tokenizer, self._task.piece)]
            if len(texts) >= before:
                raise CapacityError(
                    f"{self._example.place}: {before} summaries of pieces of {self._task.piece:,} tokens fill "
                    f"{len(texts)} such pieces again: take longer pieces (task.piece) or shorter summaries "
                    "(task.max_tokens)"
                )

    def refined(self) -> str:
        """The summary of the first piece, renewed at each of the others."""
        summary = self._of(self._pieces[0])
        for text in self._pieces[1:]:
            summary = self._of(text, self._task.renewed[self._task.language], {"summary": summary})
        return summary

    def _of(self, text: str, template: str = "", more: Mapping[str, str] | None = None) -> str:
        """The summary of a text; of a later piece, with the query at its end where there is one."""
        query = self._example.values.get("query")
        values = {**self._example.values, "document": text, **(more or {})}
        if template and query:
            template += " ({query})"
        content = self._task.filled(Example(self._example.place, values), template)
        asked = self._framed([*self._task._system(), {"role": "user", "content": content}])
        said = self._writer.write(asked, self._task.max_tokens, self._example.place, "a smaller task.piece")
        self._said.append(said)
        return said.text.strip()
