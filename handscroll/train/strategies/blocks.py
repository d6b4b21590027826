"""Storage for the tensors that a long step sets aside: page-locked host memory, or a file mapped into memory.

A `Blocks` works like a dictionary of tensors. A tensor is written whole, can be read, and can be added to.
"""

import mmap
import os
import tempfile
from collections.abc import Hashable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from handscroll.base.errors import CapacityError

POPULATE = getattr(mmap, "MAP_POPULATE", 0)  # read all pages at once if the system can


class Blocks(Protocol):
    """Tensors by key. A tensor that `read` returned is valid until the next `release` of its key."""

    def write(self, key: Hashable, tensor: Tensor) -> None: ...

    def read(self, key: Hashable) -> Tensor: ...

    def add(self, key: Hashable, first: int, change: Tensor, like: Tensor) -> None:
        """Add `change` to a tensor, along dimension 2 from index `first` on.

        A new key starts as zeros with the shape of `like`, in float32 (in float64 if `like` is float64).
        """
        ...

    def release(self, key: Hashable) -> None: ...

    def __contains__(self, key: Hashable) -> bool: ...

    def discard(self, key: Hashable) -> None:
        """Forget a tensor if it is stored, and free its space."""
        ...

    def close(self) -> None:
        """Forget all tensors and free their space."""
        ...


class HostBlocks:
    """Tensors in host memory (page-locked if there is a GPU), which are copied to the device when they are read."""

    def __init__(self, device: torch.device):
        self.device = device
        self._held: dict[Hashable, Tensor] = {}
        self._here: dict[Hashable, Tensor] = {}

    def write(self, key: Hashable, tensor: Tensor) -> None:
        if key not in self._held:
            self._held[key] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self.device.type == "cuda")
        # The copy is synchronous, because the caller may overwrite or free the tensor at once.
        self._held[key].copy_(tensor)

    def read(self, key: Hashable) -> Tensor:
        if key not in self._here:
            self._here[key] = self._held[key].to(self.device, non_blocking=True)
        return self._here[key]

    def add(self, key: Hashable, first: int, change: Tensor, like: Tensor) -> None:
        if key not in self._held:
            self.write(key, torch.zeros(like.shape, dtype=_wide(like)))
        self._held[key][:, :, first : first + change.shape[2]] += change.to("cpu", _wide(like))

    def release(self, key: Hashable) -> None:
        self._here.pop(key, None)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._held

    def discard(self, key: Hashable) -> None:
        self._held.pop(key, None)
        self._here.pop(key, None)

    def close(self) -> None:
        self._held.clear()
        self._here.clear()


class DiskBlocks:
    """Tensors in one unnamed file. Each is mapped into memory only while a caller uses it.

    Space is reserved before it is written, so a full disk raises an error here and sends no signal later. The file has
    no name, so nothing is left behind however the process ends. The system writes and reads ahead on its own
    (asynchronously). Tensors that are not mapped stay in the system's cache while it has room, and take no memory of
    this process.

    The dictionary holds places in the file and no tensors. Small long-lived objects between large short-lived ones
    would leave holes in the heap that grow with the text (4 KB a token on a model of 5M parameters, 2026-11).
    """

    def __init__(self, folder: Path, device: torch.device):
        self.folder, self.device = folder, device
        try:
            self._file, name = tempfile.mkstemp(prefix="handscroll-", dir=folder)
        except OSError as error:
            raise CapacityError(
                f"offload folder {folder} cannot be used: {error.strerror}; name a folder you may write to"
            ) from None
        Path(name).unlink()
        self._end = 0
        self._free: dict[int, list[int]] = {}
        self._places: dict[Hashable, tuple[int, torch.Size, torch.dtype]] = {}

    def write(self, key: Hashable, tensor: Tensor) -> None:
        self._place(key, tensor.shape, tensor.dtype)
        self._mapped(key).copy_(tensor)

    def read(self, key: Hashable) -> Tensor:
        return self._mapped(key).to(self.device)

    def add(self, key: Hashable, first: int, change: Tensor, like: Tensor) -> None:
        fresh = key not in self._places
        self._place(key, like.shape, _wide(like))
        held = self._mapped(key)
        if fresh:
            held.zero_()
        held[:, :, first : first + change.shape[2]] += change.to("cpu")

    def release(self, key: Hashable) -> None:
        """Do nothing: no tensor is kept in memory between reads."""

    def __contains__(self, key: Hashable) -> bool:
        return key in self._places

    def discard(self, key: Hashable) -> None:
        if key in self._places:
            place, shape, dtype = self._places.pop(key)
            self._free.setdefault(_pages(shape, dtype), []).append(place)

    def close(self) -> None:
        self._places.clear()
        self._free.clear()
        os.close(self._file)

    def _mapped(self, key: Hashable) -> Tensor:
        place, shape, dtype = self._places[key]
        region = mmap.mmap(self._file, _pages(shape, dtype), flags=mmap.MAP_SHARED | POPULATE, offset=place)
        return torch.frombuffer(region, dtype=dtype, count=shape.numel()).view(shape)

    def _place(self, key: Hashable, shape: torch.Size, dtype: torch.dtype) -> None:
        """Give a tensor a place: the space of a discarded tensor, or new space at the end of the file."""
        if key in self._places:
            return
        size = _pages(shape, dtype)
        if self._free.get(size):
            self._places[key] = (self._free[size].pop(), shape, dtype)
            return
        try:
            os.posix_fallocate(self._file, self._end, size)
        except OSError as error:
            free = os.statvfs(self.folder)
            raise CapacityError(
                f"offloading to {self.folder} needs {size:,} bytes more ({self._end:,} written), but only "
                f"{free.f_bavail * free.f_frsize:,} are free: {error.strerror}. "
                "Free some space, name another memory.folder, or use shorter rows"
            ) from None
        self._places[key] = (self._end, shape, dtype)
        self._end += size


def _pages(shape: torch.Size, dtype: torch.dtype) -> int:
    """The bytes of a tensor, rounded up to whole pages."""
    return -(-shape.numel() * dtype.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE


def _wide(like: Tensor) -> torch.dtype:
    return torch.float64 if like.dtype == torch.float64 else torch.float32
