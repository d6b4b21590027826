"""Blanks ask for no more places than a recipe is told that they may."""

import numpy as np
import pytest

from handscroll.data.blanks import longest_span
from handscroll.data.sources import TokenSource
from handscroll.nn.blanks import SPAN
from handscroll.train.rows import BlanksData


class Words:
    """A tokenizer's vocabulary, which is all that is asked of it."""

    words = [str(number) for number in range(60)] + ["[MASK]", "[gMASK]", "[sop]", "[eop]"]


@pytest.mark.parametrize("document", [0.0, 0.5])
@pytest.mark.parametrize(("share", "mean"), [(0.15, 3.0), (0.5, 1.0), (0.5, 40.0)])
def test_places_of_rows_stay_within_what_is_said(share, mean, document):
    data = BlanksData(kind="blanks", share=share, mean=mean, document=document)
    source = TokenSource([np.arange(1, 59).repeat(5), np.arange(1, 30)])
    places, inside = data.places(256, int(source.lengths.max()))
    stream = data.stream(source, Words(), 256, seed=1)  # type: ignore[arg-type]
    seen = np.concatenate([stream.row(number).positions for number in range(200)])
    most = seen % SPAN, seen // SPAN
    assert most[0].max() < places and most[1].max() < inside
    if not document and mean == 3.0:
        assert inside == longest_span(3.0) + 2 == 23
