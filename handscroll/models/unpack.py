"""Converts foreign tensors into ours and back: shapes, fused projections, orders of rows."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from handscroll.base.errors import CheckpointError
from handscroll.models.foreign import Entry, Family
from handscroll.models.model import Decoder


class _Uninitialised(TorchFunctionMode):
    """Skips random initial weights. On the meta device torch would import its compiler for them, which takes 2 s."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def mapped(path: Path) -> Tensor:
    """The mapped bytes of a file; pages are read on access and dropped when memory is short.

    The mapping is private: training writes to separate pages and never to the file.
    """
    return torch.from_file(str(path), False, path.stat().st_size, dtype=torch.uint8)


def empty_model(kind: Family, config: Any) -> Decoder:
    """A model of a family without numbers (on the meta device)."""
    with torch.device("meta"), _Uninitialised():
        return kind.build(config)


def unpack(
    entry: Entry, tensor: Tensor, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]], where: Path
) -> Iterator[tuple[str, Tensor]]:
    """Our tensors, as (name, tensor), from one foreign tensor of numbers or from the raw rows of a quantised matrix.

    `shape` is the shape of the foreign tensor in numbers; `shapes` are the shapes that the configuration requires.
    """
    if entry.stacked and len(shape) == 3:
        tensor, shape = tensor.reshape(-1, tensor.shape[-1]), (shape[0] * shape[1], shape[2])
    if entry.transposed and tensor.dim() == 2:
        tensor, shape = tensor.T, shape[::-1]
    wanted = [shapes[name] for name in entry.ours]
    total = (sum(one[0] for one in wanted), *wanted[0][1:])
    if shape != total:
        raise CheckpointError(
            f"{where}: tensor '{entry.theirs}' has shape {shape}, but its configuration requires {total}"
        )
    if entry.heads:
        tensor = tensor.unflatten(0, (entry.heads, len(entry.ours), -1)).transpose(0, 1).flatten(0, 2)
    if entry.pairs is not None:
        tensor = _paired(tensor, entry.pairs, (-1, 2))
    yield from zip(entry.ours, tensor.split([one[0] for one in wanted]), strict=True)


def pack(entry: Entry, state: Mapping[str, Tensor]) -> Tensor:
    """One foreign tensor from our tensors."""
    if entry.stacked:
        return torch.stack([state[name] for name in entry.ours]).cpu()
    tensor = state[entry.ours[0]] if len(entry.ours) == 1 else torch.cat([state[name] for name in entry.ours])
    if entry.heads:
        tensor = tensor.unflatten(0, (len(entry.ours), entry.heads, -1)).transpose(0, 1).flatten(0, 2)
    if entry.pairs is not None:
        tensor = _paired(tensor, entry.pairs, (2, -1))
    if entry.plus:
        tensor = tensor.to(torch.float32) + entry.plus
    return (tensor.T if entry.transposed else tensor).contiguous().cpu()


def _paired(tensor: Tensor, pairs: tuple[int, int], form: tuple[int, int]) -> Tensor:
    """Reorder the rotated outputs of each head from adjacent pairs to halves (`form` (-1, 2)), or back ((2, -1))."""
    size, rotated = pairs
    turned, rest = tensor.unflatten(0, (-1, size)).split([rotated, size - rotated], dim=1)
    return torch.cat([turned.unflatten(1, form).transpose(1, 2).flatten(1, 2), rest], dim=1).flatten(0, 1)
