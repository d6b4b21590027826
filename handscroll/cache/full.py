"""Policy `full`: keeps every key and value unchanged. Exact."""

from dataclasses import dataclass
from typing import ClassVar

from handscroll.cache.buffered import Buffered


@dataclass(eq=False)
class FullCache(Buffered):
    """The exact cache: all tokens of a full layer, the window of a windowed one."""

    policy: ClassVar[str] = "full"
    exact: ClassVar[bool] = True
    saved: ClassVar[bool] = True
    recordable: ClassVar[bool] = True
