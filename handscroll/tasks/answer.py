"""Questions about documents, answered in words: from the whole document, or from the blocks nearest to the question."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field as Setting

from handscroll.data.encoded import Encoded
from handscroll.data.table.fields import Field
from handscroll.lm import LM
from handscroll.search.similar import Similar
from handscroll.tasks.evidence import evidence
from handscroll.tasks.generative import USER, Framed, Generative
from handscroll.tasks.task import Example, Prediction
from handscroll.tasks.writer import Writer, learned
from handscroll.text.pieces import Piece, pieces
from handscroll.text.tokenizer import Tokenizer


class Answer(Generative):
    """Answers to questions about documents, with the place in the document where the answer stands.

    reading: "whole" reads the document. "blocks" reads the `blocks` pieces of at most `block` tokens that are most like
    the question (BM25), in the order in which they stand. Tokens that were read stand beside those of the document.
    """

    name: ClassVar[str] = "answer"
    summary: ClassVar[str] = "questions about documents, answered in words, with their place"
    metrics: ClassVar[tuple[str, ...]] = ("token-f1", "exact-match", "rouge-l")
    smaller: ClassVar[str] = "the blocks that are most like the question (task.reading=blocks)"
    prompts: ClassVar[Mapping[str, str]] = {
        "en": "{document}\n\nAnswer with the fewest words, from the text above: {question}",
        "zh": "{document}\n\n请根据上文，用尽量少的字回答：{question}",
    }
    reading: Literal["whole", "blocks"] = Setting(default="whole", description="what of a document is read")
    block: int = Setting(default=256, ge=16, description="the most tokens of a block")
    blocks: int = Setting(default=4, ge=1, description="how many blocks are read")
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
        part, _ = self._read(lm.tokenizer, example)
        return learned(lm, self.form, self.turns(part), example.place)

    def prompt_ids(self, writer: Writer, example: Example) -> list[int]:
        return writer.prompt(self.asked(self._read(writer.lm.tokenizer, example)[0]))

    def reach(self, context: int) -> str:
        if self.reading == "whole":
            return super().reach(context)
        return f"Of a document, the {self.blocks:,} pieces of {self.block:,} tokens most like the question are read."

    def predicted(self, writer: Writer, example: Example, framed: Framed) -> Prediction:
        tokenizer, document = writer.lm.tokenizer, example["document"]
        part, read = self._read(tokenizer, example)
        asked = framed(self.asked(part))
        said = writer.write(asked, self.max_tokens, example.place, self.smaller)
        text, told = said.text.strip(), said.counts
        tokens = {**told["tokens"], "document": len(tokenizer.encode(document, special=False))}
        place = evidence(document, text, example["question"], read)
        more = {**told, "tokens": tokens, "evidence": place, "blocks": [[one.start, one.end] for one in read]}
        return Prediction(text, {**more, **self._surprise(writer, example, asked)})

    def _read(self, tokenizer: Tokenizer, example: Example) -> tuple[Example, Sequence[Piece]]:
        """The example with what is read of its document, and where that stands."""
        document = example["document"]
        if self.reading == "whole":
            return example, [Piece(0, len(document), document)]
        cut = pieces(document, tokenizer, self.block)
        best = sorted(Similar([one.text for one in cut]).best(example["question"], self.blocks))
        read = [cut[number] for number in best]
        joined = "\n...\n".join(one.text.strip() for one in read)
        return Example(example.place, {**example.values, "document": joined}), read
