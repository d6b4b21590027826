"""The files of a part of a saved reading: its description, its token ids, and the columns of each layer."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from handscroll.base.runs import Content, Entry, write_chunks
from handscroll.cache.reading.about import About
from handscroll.cache.reading.reading import LAYER, Reading


def files_of(about: About, tokens: Tensor, layers: Sequence[Sequence[Tensor]]) -> dict[str, Content]:
    """The files of a part; of each layer keys, values and scales (1, K, S, ...)."""
    files: dict[str, Content] = {
        "about.json": (json.dumps(asdict(about), indent=1, sort_keys=True) + "\n").encode(),
        "tokens.bin": tokens.to(torch.int32).numpy().tobytes(),
    }
    return files | {LAYER.format(layer): _writer(columns) for layer, columns in enumerate(layers)}


def _writer(tensors: Sequence[Tensor]):
    """Writes one layer: keys, values and scales (1, K, S, ...) one after the other."""

    def write(path: Path) -> Entry:
        parts = [x[0].cpu().contiguous().view(-1).view(torch.uint8).numpy() for x in tensors]
        return write_chunks(path, [part.data for part in parts])

    return write


def joined(before: Reading, state: list[dict[str, Tensor]], windows: Sequence[int | None]) -> list[dict[str, Tensor]]:
    """The state with the earlier tokens of full layers before it, copied from the mapped files."""
    found = []
    for spans, columns, window in zip(before.spans, state, windows, strict=True):
        if window is None:
            parts = [(span.keys, span.values, *(span.scales or ())) for span in spans]
            whole = (torch.cat(column, dim=2) for column in zip(*parts, columns.values(), strict=True))
            columns = dict(zip(columns, whole, strict=True))
        found.append(columns)
    return found


def later(state: list[dict[str, Tensor]], windows: Sequence[int | None], first: int) -> list[dict[str, Tensor]]:
    """The state without the first tokens of full layers; windowed layers keep their last tokens."""
    return [
        {name: column[:, :, first:] for name, column in columns.items()} if window is None else columns
        for columns, window in zip(state, windows, strict=True)
    ]
