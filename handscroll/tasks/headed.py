"""What tasks share whose answer a head over a model gives of a whole text, or of a document in blocks."""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field as Setting
from pydantic import model_validator
from torch import Tensor

from handscroll.base.errors import CapacityError, ConfigError, DataError
from handscroll.base.spec import HeadSpec
from handscroll.data.row import IGNORED, Row
from handscroll.data.table.fields import Field
from handscroll.lm import LM
from handscroll.models.documents import judged
from handscroll.models.model import Model
from handscroll.models.new import with_head
from handscroll.objectives.blocks import Pooling, pooled
from handscroll.objectives.classify import Classify as Loss
from handscroll.tasks.batches import joined
from handscroll.tasks.task import ANY, Example, OnDone, Prediction, Task
from handscroll.text.framed import Framed, framed

AT_ONCE = 64  # examples that are judged between two reports of progress
WEIGHT = "(weight of the block)"  # the output beside the labels by which blocks are weighted
TEXTS = (
    Field("text", ("sentence", "content", "review", "question", "title", "document")),
    Field("pair", ("text2", "sentence2", "hypothesis"), False),
)


class Headed(Task):
    """The head reads the first token of an encoder (through its pooler, if the family has one), the last of a decoder.

    With `blocks`, a document is read in blocks that do not see each other, and their outputs are joined: by their mean,
    or weighted by one more output of the head. Only this project reads the latter folder as it is meant.
    """

    blocks: int = Setting(default=0, ge=0, description="tokens of a block that is read by itself; 0: the whole text")
    pooling: Pooling = Setting(default="mean", description="how blocks are joined: their mean, or a learned weight")

    @model_validator(mode="after")
    def _joined(self):
        if self.pooling == "attention" and not self.blocks:
            raise ValueError("pooling = 'attention' joins blocks: give their size, blocks = 256")
        return self

    @property
    @abstractmethod
    def head(self) -> HeadSpec:
        """What the head gives of a text."""

    @abstractmethod
    def target(self, example: Example) -> int:
        """The target of an example, as `objectives/classify.py` wants it."""

    @abstractmethod
    def said(self, outputs: Tensor) -> Prediction:
        """The prediction from the outputs of the head."""

    def room(self, lm: LM) -> int:
        return ANY if self.blocks else lm.context

    def ready(self, lm: LM, seed: int) -> LM:
        if self.blocks > lm.context:
            raise ConfigError(
                f"task.blocks is {self.blocks:,}, but the model's context is {lm.context:,}: give smaller blocks"
            )
        head, more = self.head, {}
        if self.pooling == "attention":
            more["labels"] = (*head.labels, WEIGHT)
        if lm.model.config.head_pool == "last":
            more["pad"] = lm.tokenizer.pad  # passed over, which is how other libraries find the last token of a text
        lm.model = with_head(lm.model, head.model_copy(update=more), torch.Generator().manual_seed(seed))
        return lm

    def rows(self, lm: LM, example: Example) -> list[Row]:
        row = joined([_row(block) for block in self._read(lm, example)])
        row.targets[0 if lm.model.spec.pool == "first" else -1] = self.target(example)
        return [row]

    def in_words(self, rows: Sequence[Row]) -> str:
        if not self.blocks:
            return ""
        counts = [1 if row.segment is None else int(row.segment.max()) + 1 for row in rows]
        return (
            f"{sum(counts):,} blocks of at most {self.blocks:,} tokens in {len(counts):,} texts, {min(counts):,} to "
            f"{max(counts):,} a text ({sum(counts) / len(counts):.1f} on average), joined by {self.pooling}"
        )

    def loss(self, model: Model, weights: tuple[float, ...] = ()) -> Loss:
        """The loss of the head, over blocks if there are such."""
        return Loss.of(model, weights=weights, pooling=self.pooling if self.blocks else None)

    def needed(self, lm: LM, examples: Sequence[Example]) -> list[int]:
        return [0 if self.blocks else len(self._read(lm, example)[0].ids) for example in examples]

    def reach(self, context: int) -> str:
        if not self.blocks:
            return super().reach(context)
        return (
            f"Texts are read in blocks of {self.blocks:,} tokens that do not see each other, joined by {self.pooling}; "
            "other libraries read one block of them, and do not join them."
        )

    def predict(self, lm: LM, examples: Sequence[Example], on_done: OnDone = lambda done: None) -> list[Prediction]:
        found: dict[int, Prediction] = {}
        for example, size in zip(examples, self.needed(lm, examples), strict=True):
            if size > lm.context:
                raise _too_long(example, size, lm)
        order = sorted(range(len(examples)), key=lambda at: len(str(text_of(examples[at]))))
        for first in range(0, len(order), AT_ONCE):
            part = order[first : first + AT_ONCE]
            blocks, owners = [], []
            for number, at in enumerate(part):
                own = self._read(lm, examples[at])
                blocks += own
                owners += [number] * len(own)
            pooling: Pooling = self.pooling if self.blocks else "mean"
            outputs = pooled(torch.stack(judged(lm.model, blocks)), torch.tensor(owners), len(part), pooling)
            for number, at in enumerate(part):
                one = self.said(outputs[number])
                more = {**one.more, "blocks": owners.count(number)} if self.blocks else one.more
                found[at] = Prediction(one.output, more)
            on_done(len(found))
        return [found[at] for at in range(len(examples))]

    def likeness(self, example: Example) -> str:
        """The text, and below it the second one of a pair."""
        given = text_of(example)
        return given if isinstance(given, str) else "\n".join(given)

    def _read(self, lm: LM, example: Example) -> list[Framed]:
        """The text between special tokens: whole, of any length, or in blocks of nearly equal length."""
        try:
            return framed(lm.tokenizer, text_of(example), self.blocks or ANY, windows=bool(self.blocks))
        except (CapacityError, DataError) as error:
            raise type(error)(f"{example.place}: {error}") from None


def text_of(example: Example) -> str | tuple[str, str]:
    """The text of an example, or its two."""
    pair = example.values.get("pair")
    return example["text"] if pair is None else (example["text"], pair)


def _row(block: Framed) -> Row:
    kinds = np.array(block.kinds, dtype=np.int64) if any(block.kinds) else None
    targets = np.full(len(block.ids), IGNORED, dtype=np.int64)
    return Row(np.array(block.ids, dtype=np.int64), targets, 0, 0, kinds=kinds)


def _too_long(example: Example, size: int, lm: LM) -> CapacityError:
    return CapacityError(
        f"{example.place}: the text has {size:,} tokens, the model's context is {lm.context:,}, and nothing is cut. "
        f"Tune a longer model (handscroll extend ... --to {size}), or one that reads blocks (--set task.blocks=256)"
    )
