"""The windows of text on which candidates are measured: real ones, and short ones whose positions leap far ahead.

A leaping window is a short passage. Its first half stands at the positions 0, 1, 2, ...; its second half is cut into
parts that stand further and further away, the last of them at the end of the target. Queries then meet keys at all
distances up to the target, for the price of a short text (Zhu et al. 2024, "PoSE", arXiv:2309.10400, trains with such
positions). It shows whether far positions work. It does not show how attention spreads over many tokens, so it only
decides which candidates are measured on real windows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from handscroll.evaluate.certificate import certify, together
from handscroll.evaluate.perplexity import token_nll
from handscroll.evaluate.samples import Sample
from handscroll.generate.score import losses_at
from handscroll.lm import LM
from handscroll.nn.marks import Marks

PARTS = 4  # of the second half of a leaping window
LEAPING = 2048  # most tokens of a leaping window
NEAR = 4096  # most tokens of a window that count as its short text


@dataclass(frozen=True)
class Window:
    """Tokens `ids` of a request of `to` tokens. `leaps` are (token, position): from this token on, positions count up
    from there; without leaps positions are those of the tokens."""

    ids: Sequence[int]
    trained: int
    to: int
    leaps: tuple[tuple[int, int], ...] = ()

    @classmethod
    def real(cls, sample: Sample, trained: int, to: int) -> "Window":
        return cls(sample.ids, trained, to)

    @classmethod
    def leaping(cls, sample: Sample, trained: int, to: int) -> "Window":
        """`sample` with its second half spread over trained .. to - 1."""
        size = len(sample.ids)
        edges = [size // 2 + part * (size - size // 2) // PARTS for part in range(PARTS + 1)]
        leaps = []
        for number in range(PARTS):
            ends = trained + (to - trained) * (number + 1) // PARTS
            leaps.append((edges[number], ends - (edges[number + 1] - edges[number])))
        return cls(sample.ids, trained, to, tuple(leaps))

    @property
    def near(self) -> int:
        """Tokens at the beginning that count as short text."""
        first = self.leaps[0][0] if self.leaps else len(self.ids)
        return min(self.trained, first, NEAR)

    @property
    def others(self) -> "tuple[Window, ...]":
        """Further short texts out of a real window, each to be read by itself.

        One short text says little of what a change costs there where the trained length is short. Together they have at
        most `NEAR` tokens, and at most half of those of the window.
        """
        if self.leaps:
            return ()
        more = more_short(self.trained, len(self.ids))
        firsts = range(self.near, self.near + more, self.near)
        return tuple(Window(self.ids[first : first + self.near], self.trained, self.to) for first in firsts)

    @property
    def cost(self) -> int:
        """Tokens that are read."""
        return len(self.ids) + sum(len(one.ids) for one in self.others)

    def positions(self) -> Tensor:
        """The position (T,) of each token."""
        found = torch.arange(len(self.ids))
        for token, position in self.leaps:
            found[token:] = position + torch.arange(len(self.ids) - token)
        return found

    def where(self) -> list[object]:
        """What tells this window from all others, as JSON."""
        return [self.trained, self.to, self.leaps, list(self.ids), len(self.others)]


def more_short(trained: int, size: int) -> int:
    """Tokens of the further short texts (`Window.others`) of a real window of `size` tokens."""
    near = min(trained, size, NEAR)
    return max(0, min(size // 2, NEAR) // near - 1) * near


def leaping_size(trained: int, to: int) -> int:
    """Tokens of a leaping window, a multiple of all its parts."""
    return min(LEAPING, 2 * trained, 2 * (to - trained)) // (2 * PARTS) * 2 * PARTS


def losses(lm: LM, window: Window, on_read: Callable[[int], None] | None = None) -> tuple[Tensor, Tensor]:
    """The losses of the tokens past the trained length, and of the short texts (float64, in order)."""
    far, short = _losses(lm, window, on_read)
    return far, torch.cat([short, *(_losses(lm, one, None)[1] for one in window.others)])


def _losses(lm: LM, window: Window, on_read: Callable[[int], None] | None) -> tuple[Tensor, Tensor]:
    ids, near = torch.tensor(window.ids), window.near
    positions = window.positions()
    far, short = positions[1:] >= window.trained, torch.arange(1, len(ids)) < near
    if lm.model.spec.reads != "forward":
        assert not window.leaps, "only decoders leap"
        found = token_nll(lm, list(window.ids), on_read=on_read).double()
        return found[far], found[short]
    marks = None
    if window.leaps:
        places = (torch.arange(len(ids) - 1)[None], positions[None, :-1])
        index, leaping = (one.to(lm.model.device) for one in places)
        marks = Marks.of(index, positions=leaping)
    found = losses_at(lm.model, ids, marks, window.to, far | short, on_read).double()
    return found[far[far | short]], found[short[far | short]]


def short_losses(lm: LM, window: Window) -> Tensor:
    """The losses of the short texts alone, each as a text of its own."""
    texts = [window.ids[: window.near], *(one.ids for one in window.others)]
    return torch.cat([token_nll(lm, list(one)).double() for one in texts])


def certificate(samples: Sequence[Sample]) -> dict[str, Any]:
    """The truncation certificate of windows that were read whole, as it stands in a record."""
    return together(certify(sample.ids, len(sample.ids)) for sample in samples).record()
