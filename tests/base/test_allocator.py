"""The heap keeps some free memory, so that tensors of a few megabytes do not cost new pages each time."""

import json
import os
import subprocess
import sys

import pytest

from handscroll.base import allocator

SCRIPT = """
import ctypes, json, resource, sys
if len(sys.argv) > 1:
    from handscroll.base import allocator
library, size, rounds = ctypes.CDLL(None), 5 << 20, 50
library.malloc.restype = ctypes.c_void_p
for last in (False, True):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        three = [ctypes.c_void_p(library.malloc(size)) for _ in range(3)]
        for one in three:
            library.memset(one, 1, size)
        for one in three:
            library.free(one)
print(json.dumps((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / rounds))
"""


def faults(*arguments, **environment):
    """New pages for each round of three pieces of 5 MiB, which are 3,840 pages."""
    made = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env={**{k: v for k, v in os.environ.items() if k not in allocator._OTHERS}, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(made.stdout)


@pytest.mark.skipif(allocator._mallopt is None, reason="the C library is not glibc")
def test_pieces_of_a_few_megabytes_get_the_same_pages_again():
    assert faults("ours") < 100
    # Without the module, and where the user has set glibc's parameters, its own rule holds.
    assert faults() > 1000
    assert faults("ours", MALLOC_TRIM_THRESHOLD_="131072") > 1000
