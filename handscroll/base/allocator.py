"""When the C library returns free memory to the system: rarely by itself, and all of it when `trim` says so.

By itself glibc returns the end of its heap once twice the size of the largest tensor so far is free there, as the
temporary tensors of a layer often are. Those of the next layer are allocated there again, and the system zeroes every
page anew: a ninth of the time of a prefill. So up to `KEPT` bytes stay in each of its heaps (usually one), in every
process that imports this module. Imports no torch.
"""

import ctypes
import os
import sys

HEAP = 32 << 20  # bytes from which a tensor is not in the heap: the most that glibc allows
KEPT = 2 * HEAP  # bytes of free memory that stay at the end of the heap: the most that glibc would come to itself
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # the names that glibc gives its parameters
_OTHERS = (
    "GLIBC_TUNABLES",
    *(f"MALLOC_{name}_" for name in ("TRIM_THRESHOLD", "MMAP_THRESHOLD", "TOP_PAD", "MMAP_MAX")),
)


def keep() -> bool:
    """Keep `KEPT` bytes of free memory; True if the library took it (glibc), and no setting of the user speaks of it.

    glibc moves both limits by itself until one is set, so both are set.
    """
    if _mallopt is None or any(name in os.environ for name in _OTHERS):
        return False
    return bool(_mallopt(_MMAP_THRESHOLD, HEAP)) and bool(_mallopt(_TRIM_THRESHOLD, KEPT))


def trim() -> bool:
    """Return the free pages of the C library's heap to the system; True if the library supports it (glibc).

    glibc allocates tensors below 32 MiB from a heap and keeps the holes between them. When this function is called
    between the layers or chunks of a long step, holes of about a tenth of the step's memory remain (2,600 against 2,900
    MiB, 135M parameters, 2,048 tokens, 2026-11). What is allocated again afterwards gets new pages, so it is called
    where the next allocations differ from the last ones. The alternative is to return every freed tensor at once
    (M_MMAP_THRESHOLD); it left no holes, but cost 23 % of the time.
    Limits: with other C libraries (musl, macOS) it does nothing.
    """
    return _malloc_trim is not None and bool(_malloc_trim(0))


_LIBRARY = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
_malloc_trim, _mallopt = (getattr(_LIBRARY, name, None) for name in ("malloc_trim", "mallopt"))
keep()
