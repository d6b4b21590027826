"""How the C library gives memory back: a switch for runs whose memory is planned. Imports no torch."""

import ctypes
import sys

LARGE = 256 << 10  # bytes; tensors of at least this size get pages of their own
_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h


def return_at_once(large: int = LARGE) -> bool:
    """Let every freed tensor of at least `large` bytes go back to the system at once; True where that works (glibc).

    glibc raises its own limit up to 32 MiB as tensors are freed, and what is smaller then comes from a heap with
    holes. Measured 2026-11 (torch 2.13, rung checkpoint, 1M parameters, 8,192 tokens): 150 MB of tensors took 320 MB;
    with this 154 MB. It costs time, since the system zeroes fresh pages: 10 to 15 % on the rungs that save memory, 25 %
    on plain, which is why plain runs leave the C library as it is.
    Lasts for the process. Limits: nothing happens with other C libraries (musl, macOS).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_MMAP, large) == 1 and mallopt(_TRIM, 2 * large) == 1
