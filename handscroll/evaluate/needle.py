"""Needle: does the model find one sentence in a long text? Key retrieval over a grid of length x depth.

The task follows Kamradt (2023, "Needle in a haystack") and the passkey task of Mohtashami & Jaggi (2023). Here it is
exact and deterministic. Prompt and answer together have exactly the given number of tokens. A seed determines keys and
values. An answer counts only if greedy decoding gives all of its tokens.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from handscroll.base.config import Config
from handscroll.base.errors import CapacityError, ConfigError, DataError
from handscroll.data.recall import NEEDLE as FORM
from handscroll.data.recall import RESERVED, needle_pieces, needle_prompt
from handscroll.generate.prefill import hidden_chunks
from handscroll.lm import LM
from handscroll.nn.finite import finite
from handscroll.nn.marks import Marks

NEEDLE = "".join(FORM).rstrip("\n")


class NeedleGrid(Config):
    """The cells to measure.

    `batch_tokens` limits memory: a forward pass has batch_tokens / length rows, at least one.
    """

    lengths: tuple[int, ...] = Field(min_length=1)
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    samples: int = Field(default=10, ge=1)
    seed: int = 0
    digits: int = Field(default=5, ge=1, le=12)
    batch_tokens: int = Field(default=8192, ge=1)


def needle_grid(
    lm: LM, filler: Sequence[int], grid: NeedleGrid, label: str, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Measure the grid and return the JSON record: accuracy[depth][length] in [0, 1], and every sample's outcome.

    `filler` holds the token ids of the haystack; each sample reads it from a random place.

    Raises:
        DataError: the filler is shorter than the longest length, or the tokenizer cannot encode the needle.
        ConfigError: a depth is outside [0, 1], or a length has no room for needle and question.
        CapacityError: a length exceeds a learned position table.
    """
    _check(lm, filler, grid)
    accuracy, outcomes = [], []
    cells = [(length, depth) for length in grid.lengths for depth in grid.depths]
    for number, (length, depth) in enumerate(cells):
        correct = _cell(lm, filler, grid, length, depth)
        accuracy.append(sum(correct) / len(correct))
        outcomes.append({"length": length, "depth": depth, "correct": "".join("1" if c else "0" for c in correct)})
        if progress is not None:
            progress(number + 1, len(cells))
    columns = [accuracy[first : first + len(grid.depths)] for first in range(0, len(accuracy), len(grid.depths))]
    return {
        "kind": "needle",
        "model": lm.source,
        "label": label,
        "trained": lm.trained,
        "lengths": list(grid.lengths),
        "depths": list(grid.depths),
        "accuracy": [list(row) for row in zip(*columns, strict=True)],
        "samples": grid.samples,
        "format": NEEDLE,
        "seed": grid.seed,
        "outcomes": outcomes,
    }


def _cell(lm: LM, filler: Sequence[int], grid: NeedleGrid, length: int, depth: float) -> list[bool]:
    generator = random.Random(f"{grid.seed}/{length}/{depth}")
    prompts = [needle_prompt(lm.tokenizer, filler, length, depth, grid.digits, generator) for _ in range(grid.samples)]
    rows = max(1, grid.batch_tokens // length)
    correct: list[tuple[int, bool]] = []
    answer = {len(value) for _, value in prompts}
    for size in sorted(answer):  # values may differ in their number of tokens, and a batch has one answer length
        chosen = [n for n, (_, value) in enumerate(prompts) if len(value) == size]
        for group in (chosen[i : i + rows] for i in range(0, len(chosen), rows)):
            ids = torch.tensor([prompts[n][0] + prompts[n][1] for n in group])
            correct += zip(group, _answers(lm, ids, size), strict=True)
    return [hit for _, hit in sorted(correct)]


@torch.no_grad()
def _answers(lm: LM, ids: Tensor, size: int) -> list[bool]:
    """Whether greedy decoding gives the last `size` tokens of each row, from one forward pass."""
    model, length = lm.model, ids.shape[1]
    tokens = ids[:, :-1].to(model.device)
    cache = model.new_cache(capacity=length)
    tail = []
    for first, last, hidden in hidden_chunks(model, tokens, Marks.run(0, length - 1), cache, length, 1024):
        wanted = max(first, length - 1 - size)
        if wanted < last:
            tail.append(hidden[:, wanted - first :])
    guesses = finite(model.logits(torch.cat(tail, dim=1))).argmax(dim=-1).cpu()
    return (guesses == ids[:, -size:]).all(dim=1).tolist()


def _check(lm: LM, filler: Sequence[int], grid: NeedleGrid) -> None:
    bad = [depth for depth in grid.depths if not 0 <= depth <= 1]
    if bad:
        raise ConfigError(f"depth {bad[0]} is outside 0 .. 1 (0: needle first, 1: needle last)")
    pieces = [needle_pieces(lm.tokenizer, key, "9" * grid.digits) for key in RESERVED]
    shortest = max(sum(map(len, parts)) for parts in pieces) + 8
    if min(grid.lengths) < shortest:
        raise ConfigError(
            f"length {min(grid.lengths)} has no room for needle and question: give at least {shortest} tokens"
        )
    if len(filler) < max(grid.lengths):
        raise DataError(
            f"the haystack has {len(filler)} tokens, but length {max(grid.lengths)} needs as many as that: add text"
        )
    unknown = lm.tokenizer.unknown(pieces[0][1])
    if unknown:
        raise DataError(
            f"the tokenizer cannot encode {unknown} tokens of the needle {NEEDLE!r}, so this model cannot be measured"
        )
    if (limit := lm.model.spec.limit) is not None and max(grid.lengths) > limit:
        raise CapacityError(
            f"length {max(grid.lengths)} exceeds the learned position table of {lm.context} tokens: extend the model "
            "first"
        )
