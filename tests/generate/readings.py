"""Models for tests of saved readings."""

from pathlib import Path

import torch

from handscroll.lm import LM, load
from handscroll.models.llama import Llama


def roomy(folder: Path) -> LM:
    """A tiny model; its positions may be used to 4,096 tokens (what it makes of them does not matter here)."""
    lm = load(folder)
    positions = lm.model.config.positions.model_copy(update={"context": 4096})
    lm.model.config = lm.model.config.model_copy(update={"positions": positions})
    return lm


def windowed(lm: LM, window: int) -> LM:
    """The same model with a window in every second layer."""
    config = lm.model.config
    windows = tuple(window if number % 2 else None for number in range(config.layers))
    model = Llama(config.model_copy(update={"windows": windows}))
    model.load_state_dict(lm.model.state_dict())
    lm.model = model.eval()
    return lm


def text(count: int, seed: int = 0) -> list[int]:
    """The ids of a text."""
    return torch.randint(5, 500, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def reads(lm, monkeypatch):
    """Counts the tokens that go through the model."""
    counted = []
    embed = type(lm.model).embed

    def spy(self, tokens, marks):
        counted.append(tokens.shape[1])
        return embed(self, tokens, marks)

    monkeypatch.setattr(type(lm.model), "embed", spy)
    return counted


def dying(after):
    """Wraps functions; the process ends at call number `after` of all that it has wrapped."""
    left = [after]

    def wrapped(work):
        def done(*arguments, **named):
            left[0] -= 1
            if not left[0]:
                raise SystemExit
            return work(*arguments, **named)

        return done

    return wrapped
