"""Span corruption by position: what a T5 makes of the same few holes in a long text, read whole or in blocks.

As many spans are cut out of a window, whatever its length, as out of a text of the trained length, so that only
sentinels that the model was trained with stand for them, and the source grows while the target does not.
"""

import numpy as np
import torch
from torch import Tensor

from handscroll.data.batch import collate
from handscroll.data.row import IGNORED, Row
from handscroll.evaluate.samples import Sample
from handscroll.lm import LM
from handscroll.models.encoder_decoder import EncoderDecoder
from handscroll.objectives.head import token_losses
from handscroll.objectives.span_corruption import Frame, SpanCorruption, corrupt

TOKENS = 8192  # of the sources that are read together


def span_losses(
    lm: LM, samples: list[Sample], settings: SpanCorruption, block: int | None = None, trained: int = 128
) -> tuple[Tensor, Tensor]:
    """Losses (N,) in nats of the tokens that were cut out, float32 on the CPU, and their places (N,) in their windows.

    `settings` say how much is cut out of `trained` tokens, in spans of what length. Sentinels and end tokens are not
    counted. With `block` every window is cut into blocks of so many tokens, each with its own holes read by itself; a
    hole over an edge is one in each block.
    """
    model, words = lm.model, {word: number for number, word in enumerate(lm.tokenizer.words) if word is not None}
    assert isinstance(model, EncoderDecoder)
    frame = Frame.of(words, model.config.start, lm.tokenizer.eos)
    rows, places = [], []
    for number, sample in enumerate(samples):
        size = len(sample.ids)
        gone = holes(size, as_many(settings, trained, size), number)
        for first in range(0, size, block or size):
            here = slice(first, first + (block or size))
            if gone[here].any():
                row, where = holed(sample.ids[here], gone[here], frame)
                rows.append(row)
                places.append(np.where(where < 0, where, where + first))
    together = max(1, TOKENS // (block or len(samples[0].ids)))
    losses = [_scored(model, rows[first : first + together]) for first in range(0, len(rows), together)]
    where = torch.from_numpy(np.concatenate(places))
    return torch.cat(losses)[where >= 0], where[where >= 0]


def as_many(settings: SpanCorruption, trained: int, size: int) -> SpanCorruption:
    """As many tokens cut out of `size` as out of `trained`."""
    return settings.model_copy(update={"density": settings.density * trained / size})


def holes(size: int, settings: SpanCorruption, seed: int) -> np.ndarray:
    """Which of `size` tokens (bool) span corruption cuts out."""
    places = np.arange(size)
    frame = Frame(tuple(range(size, 2 * size)), start=2 * size, end=2 * size)
    return ~np.isin(places, corrupt(places, settings, frame, np.random.default_rng(seed))[0])


def holed(ids: list[int], gone: np.ndarray, frame: Frame) -> tuple[Row, np.ndarray]:
    """The row for a text with these holes, and the place of each target in it (-1: a sentinel, or the end).

    >>> row, places = holed([5, 6, 7, 8], np.array([False, True, True, False]), Frame((90, 91), start=0, end=1))
    >>> row.source.tokens.tolist(), row.targets.tolist(), places.tolist()
    ([5, 90, 8, 1], [90, 6, 7, 1], [-1, 1, 2, -1])
    """
    source: list[int] = []
    target: list[int] = []
    places: list[int] = []
    sentinels = iter(frame.sentinels)
    for place, token in enumerate(ids):
        if not gone[place]:
            source.append(token)
            continue
        if not place or not gone[place - 1]:
            sentinel = next(sentinels)
            source.append(sentinel)
            target.append(sentinel)
            places.append(-1)
        target.append(token)
        places.append(place)
    read, written = np.array([*source, frame.end]), np.array([*target, frame.end])
    under = Row(read, np.full(len(read), IGNORED), 0, 0)
    return Row(np.array([frame.start, *target]), written, 0, 0, source=under), np.array([*places, -1])


@torch.no_grad()
def _scored(model: EncoderDecoder, rows: list[Row]) -> Tensor:
    """The losses of all targets of rows, one row behind the other."""
    batch = collate(rows).to(model.device)
    assert batch.source is not None
    here, marks = model.under(model.encode(batch.source.tokens, batch.source.marks())), batch.marks()
    hidden = here.hidden(here.embed(batch.tokens, marks), marks, here.mask())
    losses = (
        token_losses(hidden.flatten(0, 1), model.project, model.config.vocab, batch.targets.flatten())
        .view(len(rows), -1)
        .float()
        .cpu()
    )
    return torch.cat([losses[number, : len(row.targets)] for number, row in enumerate(rows)])
