"""Policy `offload`: keeps all but the newest tokens on disk, or in host memory if the model is on a GPU. Exact.

Every forward reads all of them back, one run at a time, so memory holds the newest tokens and one run for a text of any
length. The price is that every token reads the whole cache from disk or host memory (`retrieval` reads a part).
"""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar, Self

from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.base.workload import Footprint
from handscroll.cache.blocked import Blocked
from handscroll.cache.files import DiskPages, HostPages, Pages
from handscroll.nn.marks import Marks
from handscroll.nn.span import Span

RUN = 4096  # tokens that are read back at a time, in whole blocks
PLACES = ("", "disk", "host")


@dataclass(eq=False)
class OffloadCache(Blocked):
    """A full cache that holds at least the `recent` newest tokens in memory, and all of the windowed layers.

    `place` is "disk" (a CPU's default) or "host" (host memory; a GPU's default). `folder` is the folder of the unnamed
    files; by default it is the system's folder for temporary files, which on some systems is memory.
    """

    policy: ClassVar[str] = "offload"
    exact: ClassVar[bool] = True
    options: ClassVar[tuple[str, ...]] = ("block", "recent", "place", "folder")

    block: int = 256
    recent: int = 256
    place: str = ""
    folder: str = ""
    _pages: Pages | None = field(init=False, default=None)

    def __post_init__(self):
        super().__post_init__()
        if self.place not in PLACES:
            raise ConfigError(f"a cache with place={self.place}: place must be disk or host")
        if self.folder and not Path(self.folder).is_dir():
            raise ConfigError(f"a cache with folder={self.folder}: there is no such folder")

    def _nbytes(self) -> int:
        return super()._nbytes() + (0 if self._pages is None else self._pages.nbytes)

    @property
    def filed(self) -> int:
        """Bytes on disk."""
        return 0 if self._pages is None else self._pages.filed

    def _footprint(self, kv_heads: int, head_size: int, itemsize: int) -> Footprint:
        """The newest tokens and two runs of a layer read back are in memory, and the others on disk."""
        made = super()._footprint(kv_heads, head_size, itemsize)
        fetched = math.ceil(made.reading / max(1, len(self.full)) * 2 * RUN)
        return made.model_copy(update={"fixed": made.fixed + fetched, "filed": made.reading})

    def footprint(self, kv_heads: int, head_size: int, itemsize: int, device: str = "cpu") -> Footprint:
        """As of every cache; tokens in host memory are beside the memory of a GPU."""
        made = super().footprint(kv_heads, head_size, itemsize, device)
        if not self._hosted(device):
            return made
        where = {"each": made.each + made.reading} if device == "cpu" else {"hosted": made.reading}
        return made.model_copy(update=where | {"filed": 0.0})

    def _hosted(self, device: str) -> bool:
        """Whether the tokens are put into host memory, and not on disk."""
        return self.place == "host" or (not self.place and device != "cpu")

    def _put(self, layer: int, keys: Tensor, values: Tensor) -> None:
        if self._pages is None:
            folder = Path(self.folder or tempfile.gettempdir())
            hosted = self._hosted(keys.device.type)
            self._pages = HostPages(self.block, keys.device) if hosted else DiskPages(self.block, folder, keys.device)
        self._pages.write(layer, self._stored // self.block, keys, values)

    def _away(self, layer: int) -> list[Span]:
        assert self._pages is not None
        step = max(1, RUN // self.block) * self.block
        runs = ((first, min(first + step, self._stored)) for first in range(0, self._stored, step))
        return [self._run(layer, first, last) for first, last in runs]

    def _run(self, layer: int, first: int, last: int) -> Span:
        """Tokens first .. last - 1 (whole blocks) as a span that is read at its first use."""
        assert self._pages is not None
        fetch = partial(self._pages.run, layer, first // self.block, last // self.block)
        return Fetched(self._pages, fetch, self._part(first, last))

    def _copy_away(self, other: Self, rows: Tensor | None) -> None:
        for layer in self.full:
            for span in self._away(layer):
                keys, values = span.keys, span.values
                other._put(layer, *(x if rows is None else x[rows] for x in (keys, values)))
                span.release()
                other._stored += span.marks.length
            other._stored = 0


class Fetched(Span):
    """A span that `fetch` reads from pages at its first use, and that `release` frees."""

    def __init__(self, pages: Pages, fetch: Callable[[], tuple[Tensor, Tensor]], marks: Marks):
        fields = {"pages": pages, "fetch": fetch, "marks": marks, "rotated": True, "held": None}
        for name, value in (fields | {"accumulate": None, "scales": None}).items():
            object.__setattr__(self, name, value)

    @property
    def keys(self) -> Tensor:  # type: ignore[override]
        return self._both()[0]

    @property
    def values(self) -> Tensor:  # type: ignore[override]
        return self._both()[1]

    def release(self) -> None:
        if self.held is not None:  # type: ignore[attr-defined]
            self.pages.release(self.held)  # type: ignore[attr-defined]
            object.__setattr__(self, "held", None)

    def _both(self) -> tuple[Tensor, Tensor]:
        if self.held is None:  # type: ignore[attr-defined]
            object.__setattr__(self, "held", self.fetch())  # type: ignore[attr-defined]
        return self.held  # type: ignore[attr-defined]
