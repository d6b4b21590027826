"""Pages of a cache outside its buffers: a page is one block of one layer's keys and values, in a file or host memory.

A page holds (B, K, 2, block, E): for every row and kv head its keys, then its values, so that one read brings both for
one head. Pages are read as runs of a layer, or chosen for each head separately.
"""

import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from handscroll.base.errors import CapacityError, CheckpointError

BUFFERS = 1024  # the most buffers that the system fills in one read (IOV_MAX)


class Pages(Protocol):
    """Pages by layer and number. After their last use, the tensors that `run` returned must be given to `release`."""

    @property
    def nbytes(self) -> int:
        """Bytes of host memory."""
        ...

    @property
    def filed(self) -> int:
        """Bytes on disk."""
        ...

    def write(self, layer: int, first: int, keys: Tensor, values: Tensor) -> None:
        """Keep keys and values (B, K, n x block, E) as pages first .. first + n - 1.

        Raises:
            CapacityError: there is no room; the pages written before are unchanged.
        """
        ...

    def run(self, layer: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Keys and values (B, K, n x block, E) of pages first .. last - 1."""
        ...

    def pick(self, layer: int, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, K, n x block, E) of the pages (B, K, n) that each head chose."""
        ...

    def release(self, tensors: tuple[Tensor, Tensor]) -> None: ...


class HostPages:
    """Pages in host memory, page-locked if the model is on a GPU."""

    def __init__(self, block: int, device: torch.device):
        self.block, self.device = block, device
        self._pages: dict[int, list[Tensor]] = {}

    @property
    def nbytes(self) -> int:
        return sum(page.nbytes for pages in self._pages.values() for page in pages)

    @property
    def filed(self) -> int:
        return 0

    def write(self, layer: int, first: int, keys: Tensor, values: Tensor) -> None:
        held = self._pages.setdefault(layer, [])
        del held[first:]
        for page in _pages(keys, values, self.block):
            kept = torch.empty(page.shape, dtype=page.dtype, pin_memory=self.device.type == "cuda")
            held.append(kept.copy_(page))

    def run(self, layer: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        return self._joined(torch.stack(self._pages[layer][first:last], dim=2))

    def pick(self, layer: int, chosen: Tensor) -> tuple[Tensor, Tensor]:
        pages = self._pages[layer]
        heads = [
            torch.stack([torch.stack([pages[n][b, h] for n in numbers]) for h, numbers in enumerate(row)])
            for b, row in enumerate(chosen.tolist())
        ]
        return self._joined(torch.stack(heads))

    def release(self, tensors: tuple[Tensor, Tensor]) -> None:
        """Do nothing: the tensors are copies."""

    def _joined(self, found: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, n, 2, block, E) -> keys and values (B, K, n x block, E) on the device."""
        keys, values = found.to(self.device, non_blocking=True).unbind(3)
        return keys.flatten(2, 3), values.flatten(2, 3)


class DiskPages:
    """Pages in one unnamed file per layer, read into buffers that are reused, and copied from them to a GPU.

    Room is reserved before it is written, so a full disk is an error here and not a signal later. The files have no
    name, so no file is left behind, however the process ends. Nothing is mapped: resident memory is that of the
    buffers. The system keeps parts of the files in its own cache, and drops them when memory is short.
    """

    def __init__(self, block: int, folder: Path, device: torch.device):
        self.block, self.folder, self.device = block, folder, device
        self._files: dict[int, int] = {}
        self._ends: dict[int, int] = {}
        self._shape: tuple[int, int, int] = (0, 0, 0)
        self._dtype = torch.float32
        self._spare: list[Tensor] = []
        self._closed = weakref.finalize(self, _close, self._files)

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._spare)

    @property
    def filed(self) -> int:
        return sum(self._ends.values())

    def write(self, layer: int, first: int, keys: Tensor, values: Tensor) -> None:
        self._shape, self._dtype = (keys.shape[0], keys.shape[1], keys.shape[3]), keys.dtype
        if layer not in self._files:
            self._files[layer] = self._opened()
        file, start = self._files[layer], first * self._page
        data = torch.stack(list(_pages(keys, values, self.block))).cpu().view(torch.uint8).numpy().data.cast("B")
        try:
            end = self._ends.get(layer, 0)
            if start + len(data) > end:
                os.posix_fallocate(file, end, start + len(data) - end)
                self._ends[layer] = start + len(data)
            done = 0
            while done < len(data):
                done += os.pwrite(file, data[done:], start + done)
        except OSError as error:
            free = os.statvfs(self.folder)
            raise CapacityError(
                f"the cache in {self.folder} needs {len(data):,} bytes more ({self.filed:,} written), "
                f"{free.f_bavail * free.f_frsize:,} are free: {error.strerror}. "
                "Free some space, name another folder (folder=...), or use shorter texts"
            ) from None

    def run(self, layer: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        rows, kv, size = self._shape
        keys, values = both = self._buffer(last - first)
        places = ((b, h) for _ in range(first, last) for b in range(rows) for h in range(kv))
        step = rows * kv
        parts = (
            x[b, h, n // step * self.block :][: self.block] for n, (b, h) in enumerate(places) for x in (keys, values)
        )
        self._read(layer, first * self._page, list(_bytes(parts)), self.block * size * self._dtype.itemsize)
        return self._there(both)

    def pick(self, layer: int, chosen: Tensor) -> tuple[Tensor, Tensor]:
        _, kv, size = self._shape
        keys, values = self._buffer(chosen.shape[2])
        each = self.block * size * self._dtype.itemsize
        for b, row in enumerate(chosen.tolist()):
            for h, numbers in enumerate(row):
                runs = zip(*(list(_bytes(x[b, h].split(self.block))) for x in (keys, values)), strict=True)
                for number, run in zip(numbers, runs, strict=True):
                    self._read(layer, number * self._page + 2 * (b * kv + h) * each, run, each)
        return self._there((keys, values))

    def release(self, tensors: tuple[Tensor, Tensor]) -> None:
        base = tensors[0]._base
        if base is not None and len(self._spare) < 2:
            self._spare.append(base)

    def _there(self, read: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """What was read, on the device of the model."""
        if self.device.type == "cpu":
            return read
        keys, values = (tensor.to(self.device) for tensor in read)
        self.release(read)
        return keys, values

    @property
    def _page(self) -> int:
        rows, kv, size = self._shape
        return 2 * rows * kv * self.block * size * self._dtype.itemsize

    def _opened(self) -> int:
        try:
            file, name = tempfile.mkstemp(prefix="handscroll-", dir=self.folder)
        except OSError as error:
            raise CapacityError(
                f"the folder {self.folder} for the cache cannot be used: {error.strerror}; name one you may write to "
                "(folder=...)"
            ) from None
        Path(name).unlink()
        return file

    def _buffer(self, pages: int) -> tuple[Tensor, Tensor]:
        """Keys and values (B, K, pages x block, E) side by side in a spare buffer, if one is large enough."""
        rows, kv, size = self._shape
        count = 2 * pages * rows * kv * self.block * size
        fits = next((n for n, held in enumerate(self._spare) if held.numel() >= count), None)
        held = torch.empty(count, dtype=self._dtype) if fits is None else self._spare.pop(fits)
        keys, values = held[: count // 2], held[count // 2 : count]
        return keys.view(rows, kv, -1, size), values.view(rows, kv, -1, size)

    def _read(self, layer: int, at: int, buffers: Sequence[memoryview], each: int) -> None:
        """Fill buffers of `each` bytes, beginning at a place in a layer's file."""
        for first in range(0, len(buffers), BUFFERS):
            some = buffers[first : first + BUFFERS]
            try:
                got = os.preadv(self._files[layer], some, at + first * each)
            except OSError as error:
                raise CheckpointError(f"the cache in {self.folder} cannot be read back: {error.strerror}") from None
            if got != len(some) * each:
                raise CheckpointError(f"the cache in {self.folder} gave {got:,} bytes of {len(some) * each:,}")


def _pages(keys: Tensor, values: Tensor, block: int) -> Iterator[Tensor]:
    """The pages (B, K, 2, block, E), one after the other."""
    for some in zip(keys.split(block, dim=2), values.split(block, dim=2), strict=True):
        yield torch.stack(some, dim=2)


def _bytes(parts: Iterator[Tensor] | Sequence[Tensor]) -> Iterator[memoryview]:
    for part in parts:
        yield part.view(torch.uint8).numpy().data.cast("B")


def _close(files: dict[int, int]) -> None:
    for file in files.values():
        os.close(file)
