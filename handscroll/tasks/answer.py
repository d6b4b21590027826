"""Questions about documents, answered in words: from the whole, the blocks nearest to the question, or each block."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, ClassVar, Literal

from pydantic import Field as Setting

from handscroll.base.errors import ConfigError
from handscroll.data.encoded import Encoded
from handscroll.data.table.fields import Field
from handscroll.lm import LM
from handscroll.search.similar import Similar
from handscroll.tasks.evidence import evidence
from handscroll.tasks.generative import USER, Framed, Generative
from handscroll.tasks.task import Example, Prediction
from handscroll.tasks.writer import Writer, Written, learned
from handscroll.text.pieces import Piece, pieces
from handscroll.text.tokenizer import Tokenizer

Asked = tuple[Example, Framed]


class Answer(Generative):
    """Answers to questions about documents, with the place in the document where the answer stands.

    reading: "whole" reads the document. "blocks" reads the `blocks` pieces of at most `block` tokens that are most like
    the question (BM25), in the order in which they stand. "map-rerank" asks every such piece by itself and gives the
    answer of the highest score: the mean log-probability of its tokens and of its end, as each piece alone makes it. So
    confidence is compared across pieces (Clark & Gardner 2018, arXiv:1710.10723), though no training made it
    comparable. Tokens that were read stand beside those of the document.
    """

    name: ClassVar[str] = "answer"
    summary: ClassVar[str] = "questions about documents, answered in words, with their place"
    metrics: ClassVar[tuple[str, ...]] = ("token-f1", "exact-match", "rouge-l")
    smaller: ClassVar[str] = "less of the document at once (task.reading=blocks or map-rerank, a smaller task.block)"
    prompts: ClassVar[Mapping[str, str]] = {
        "en": "{document}\n\nAnswer with the fewest words, from the text above: {question}",
        "zh": "{document}\n\n请根据上文，用尽量少的字回答：{question}",
    }
    reading: Literal["whole", "blocks", "map-rerank"] = Setting(default="whole", description="how a document is read")
    block: int = Setting(default=256, ge=16, description="the most tokens of a block")
    blocks: int = Setting(default=4, ge=1, description="how many blocks are read, with reading blocks")
    max_tokens: int = Setting(default=48, ge=1, description="the most tokens of an answer")

    @property
    def fields(self) -> tuple[Field, ...]:
        return (
            Field("document", ("context", "passage", "text", "article", "input")),
            Field("question", ("query",)),
            Field("answer", ("answers", "output", "target"), False, "answers", truth=True),
            USER,
        )

    def truth(self, example: Example) -> Any:
        """The answer, or several that are all right."""
        texts = list(dict.fromkeys(one["text"] for one in example.values.get("answer") or ()))
        return texts[0] if len(texts) == 1 else texts or None

    def likeness(self, example: Example) -> str:
        return example["question"]

    def given(self, example: Example) -> tuple[str, str]:
        return example["document"], example["question"]

    def learned(self, lm: LM, example: Example) -> list[Encoded]:
        """
        Raises:
            ConfigError: the reading is map-rerank. DataError: there is no answer.
        """
        if self.reading == "map-rerank":
            raise ConfigError(
                "task.reading is map-rerank, which asks every block, also those without an answer, and is not trained: "
                "train with task.reading=whole or blocks"
            )
        part, _ = self._parts(lm.tokenizer, example)[0]
        return learned(lm, self.form, self.turns(part), example.place)

    def prompt_ids(self, writer: Writer, example: Example) -> list[int]:
        """The token ids of what is asked; with map-rerank the most for one block."""
        prompts = (writer.prompt(self.asked(part)) for part, _ in self._parts(writer.lm.tokenizer, example))
        return max(prompts, key=len)

    def reach(self, context: int) -> str:
        if self.reading == "whole":
            return super().reach(context)
        if self.reading == "map-rerank":
            return f"Each piece of {self.block:,} tokens of a document is asked by itself; the likeliest answer counts."
        return f"Of a document, the {self.blocks:,} pieces of {self.block:,} tokens most like the question are read."

    def answered(self, writer: Writer, asked: Sequence[Asked]) -> Iterator[Prediction]:
        """With map-rerank, a block is asked all that follows about its document, so that it is read once."""
        if self.reading != "map-rerank":
            yield from super().answered(writer, asked)
            return
        for _, those in groupby(asked, lambda one: one[0]["document"]):
            yield from self._answers(writer, list(those))

    def predicted(self, writer: Writer, example: Example, framed: Framed) -> Prediction:
        return self._answers(writer, [(example, framed)])[0]

    def _answers(self, writer: Writer, asked: Sequence[Asked]) -> list[Prediction]:
        """What the model says to questions about one document, part by part."""
        parts = [self._parts(writer.lm.tokenizer, example) for example, _ in asked]
        said, truths = [list[Written]() for _ in asked], [dict[str, Any]() for _ in asked]
        for number in range(len(parts[0])):
            for question, (example, framed) in enumerate(asked):
                part, earlier = parts[question][number][0], said[question]
                messages = framed(self.asked(part))
                new = writer.write(messages, self.max_tokens, example.place, self.smaller)
                if _best([*earlier, new]) == len(earlier):
                    truths[question] = self._surprise(writer, part, messages)
                earlier.append(new)
        found = list[Prediction]()
        for (example, _), each, some, truth in zip(asked, parts, said, truths, strict=True):
            one = self._likeliest(writer.lm.tokenizer, example, [read for _, read in each], some)
            found.append(Prediction(one.output, {**one.more, **truth}))
        return found

    def _likeliest(
        self, tokenizer: Tokenizer, example: Example, reads: Sequence[Sequence[Piece]], said: Sequence[Written]
    ) -> Prediction:
        """The answer of the highest score, the earliest of equals, and what was read and said for it."""
        document, best = example["document"], _best(said)
        text, told = said[best].text.strip(), [one.counts["tokens"] for one in said]
        tokens = {name: sum(one[name] for one in told) for name in told[0]}
        tokens["document"] = len(tokenizer.encode(document, special=False))
        place = evidence(document, text, example["question"], reads[best])
        places = [[one.start, one.end] for read in reads for one in read]
        more = {"finish": said[best].finish, "tokens": tokens, "evidence": place, "blocks": places}
        if self.reading == "map-rerank":
            answers = [{"answer": one.text.strip(), "score": one.score} for one in said]
            more |= {"answers": answers, "block": places[best]}
        return Prediction(text, more)

    def _parts(self, tokenizer: Tokenizer, example: Example) -> list[tuple[Example, Sequence[Piece]]]:
        """What is asked by itself: the example with a part of its document, and where that stands."""
        document = example["document"]
        if self.reading == "whole":
            return [(example, [Piece(0, len(document), document)])]
        cut = [one for one in pieces(document, tokenizer, self.block) if one.text.strip()]
        if self.reading == "map-rerank":
            return [(_holding(example, [one]), [one]) for one in cut]
        best = sorted(Similar([one.text for one in cut]).best(example["question"], self.blocks))
        read = [cut[number] for number in best]
        return [(_holding(example, read), read)]


def _best(said: Sequence[Written]) -> int:
    """Which answer has the highest score; one without a word is behind all others."""
    return max(range(len(said)), key=lambda number: (bool(said[number].text.strip()), said[number].score))


def _holding(example: Example, read: Sequence[Piece]) -> Example:
    """The example with pieces of its document for the whole."""
    joined = "\n...\n".join(one.text.strip() for one in read)
    return Example(example.place, {**example.values, "document": joined})
