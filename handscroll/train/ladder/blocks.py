"""Where the tensors of a long step wait: on the device, in host memory, or in a file mapped into memory.

A `Blocks` is a dictionary of tensors that are written whole, read, and added to.
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

PAGE = mmap.PAGESIZE


class Blocks(Protocol):
    """Tensors by key. What `read` returns is to be used before the next `release` of its key."""

    def write(self, key: Hashable, tensor: Tensor) -> None: ...

    def read(self, key: Hashable) -> Tensor: ...

    def add(self, key: Hashable, first: int, change: Tensor, like: Tensor) -> None:
        """Add `change` along dimension 2 from `first` on, to float32 (float64) zeros shaped like `like` at first."""
        ...

    def release(self, key: Hashable) -> None: ...

    def __contains__(self, key: Hashable) -> bool: ...

    def discard(self, key: Hashable) -> None:
        """Forget a tensor, if it is there; its room is free again."""
        ...

    def close(self) -> None:
        """Forget everything and give the room back."""
        ...


class HostBlocks:
    """Tensors in (page-locked, where there is a GPU) host memory, copied to the device when read."""

    def __init__(self, device: torch.device):
        self.device = device
        self._held: dict[Hashable, Tensor] = {}
        self._here: dict[Hashable, Tensor] = {}

    def write(self, key: Hashable, tensor: Tensor) -> None:
        if key not in self._held:
            self._held[key] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self.device.type == "cuda")
        # Not asynchronous: the caller may overwrite or free the tensor at once.
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
    """Tensors in one unnamed file, each mapped into memory and given back to the system when released.

    The room is reserved before it is written, so a full disk is an error here and not a signal later; the file has no
    name, so nothing is left behind by any kind of death. The system writes and reads ahead on its own
    (asynchronously); what is released stays in the system's cache while there is room, and costs this process nothing.
    """

    def __init__(self, folder: Path, device: torch.device):
        self.folder, self.device = folder, device
        try:
            descriptor, name = tempfile.mkstemp(prefix="handscroll-", dir=folder)
        except OSError as error:
            raise CapacityError(
                f"offload folder {folder} cannot be used: {error.strerror}; name a folder you may write to"
            ) from None
        Path(name).unlink()
        self._file = open(descriptor, "r+b", buffering=0)  # noqa: PTH123, SIM115 - a descriptor, closed with the object
        self._end = 0
        self._free: dict[int, list[mmap.mmap]] = {}
        self._maps: dict[Hashable, tuple[mmap.mmap, Tensor]] = {}

    def write(self, key: Hashable, tensor: Tensor) -> None:
        if key not in self._maps:
            self._maps[key] = self._reserve(tensor.shape, tensor.dtype)
        self._maps[key][1].copy_(tensor)
        self.release(key)

    def read(self, key: Hashable) -> Tensor:
        return self._maps[key][1].to(self.device)

    def add(self, key: Hashable, first: int, change: Tensor, like: Tensor) -> None:
        if key not in self._maps:
            self._maps[key] = self._reserve(like.shape, _wide(like))
            self._maps[key][1].zero_()
        self._maps[key][1][:, :, first : first + change.shape[2]] += change.to("cpu")
        self.release(key)

    def release(self, key: Hashable) -> None:
        if key in self._maps:
            self._maps[key][0].madvise(mmap.MADV_DONTNEED)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._maps

    def discard(self, key: Hashable) -> None:
        if key in self._maps:
            region, _ = self._maps.pop(key)
            region.madvise(mmap.MADV_DONTNEED)
            self._free.setdefault(len(region), []).append(region)

    def close(self) -> None:
        self._maps.clear()
        self._free.clear()
        self._file.close()

    def _reserve(self, shape: torch.Size, dtype: torch.dtype) -> tuple[mmap.mmap, Tensor]:
        size = -(-shape.numel() * dtype.itemsize // PAGE) * PAGE
        region = self._free[size].pop() if self._free.get(size) else self._map(size)
        whole = torch.frombuffer(region, dtype=dtype, count=shape.numel())
        return region, whole.view(shape)

    def _map(self, size: int) -> mmap.mmap:
        try:
            os.posix_fallocate(self._file.fileno(), self._end, size)
        except OSError as error:
            free = os.statvfs(self.folder)
            raise CapacityError(
                f"offloading to {self.folder} needs {size:,} bytes more ({self._end:,} written), "
                f"{free.f_bavail * free.f_frsize:,} are free: {error.strerror}. "
                "Free some space, name another memory.folder, or use shorter rows"
            ) from None
        region = mmap.mmap(self._file.fileno(), size, offset=self._end)
        self._end += size
        return region


def _wide(like: Tensor) -> torch.dtype:
    return torch.float64 if like.dtype == torch.float64 else torch.float32
