"""Vectors of the tokens of a text by an encoder, for the embedding score (`metrics/similarity.py`).

A text that is longer than the encoder's context is read in windows that overlap by half; each token is taken from the
window where it stands farthest from an edge. Nothing is cut.
"""

from collections.abc import Sequence

import numpy as np
import torch

from handscroll.base.errors import ConfigError
from handscroll.lm import LM
from handscroll.metrics.scores import Scores
from handscroll.metrics.similarity import embedding_score
from handscroll.nn.marks import Marks
from handscroll.text.framed import framed


@torch.no_grad()
def token_vectors(lm: LM, text: str) -> np.ndarray:
    """The last hidden state (T, D) of each token of a text in float32, without those of special tokens.

    A text of blanks or nothing has no token: (0, D).

    Raises:
        ConfigError: the model is causal, so that its tokens have not seen what follows them.
    """
    model, width = lm.model, lm.model.config.width
    if not model.spec.both_ways:
        raise ConfigError(
            f"a {model.config.family} is causal: its tokens have not seen what follows them; name an encoder"
        )
    if not lm.tokenizer.encode(text, special=False):
        return np.zeros((0, width), dtype=np.float32)
    context = model.config.context
    rows = framed(lm.tokenizer, text, context, windows=True, overlap=context // 2)
    places = [[at for at, part in enumerate(row.parts) if part is not None] for row in rows]
    vectors = np.zeros((rows[-1].first + len(places[-1]), width), dtype=np.float32)
    depth = np.full(len(vectors), -1)  # how far from an edge of its window a token's vector comes
    for row, inside in zip(rows, places, strict=True):
        ids = torch.tensor([row.ids], device=model.device)
        marks = Marks.run(0, len(row.ids))
        hidden = model.hidden(model.embed(ids, marks), marks, model.mask(), length=ids.shape[1])[0]
        room = np.minimum(np.arange(len(inside)), len(inside) - 1 - np.arange(len(inside)))
        here = slice(row.first, row.first + len(inside))
        better = room > depth[here]
        vectors[here][better] = hidden[inside].float().cpu().numpy()[better]
        depth[here] = np.maximum(depth[here], room)
    return vectors


def text_similarity(lm: LM, references: Sequence[str], predictions: Sequence[str]) -> Scores:
    """The embedding score of texts by an encoder: see `handscroll.metrics.similarity`.

    Raises:
        DataError: counts that differ, no examples, an empty reference. ConfigError: the model is causal.
    """
    wanted, given = ([token_vectors(lm, text) for text in side] for side in (references, predictions))
    return embedding_score(wanted, given)
