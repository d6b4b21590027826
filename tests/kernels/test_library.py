"""A library in the cache that was damaged is noticed before it is loaded, and built again once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from handscroll.kernels.native.library import build, library, reason

pytestmark = pytest.mark.skipif(library() is None, reason=f"no compiled kernels: {reason()}")


@pytest.fixture
def compiler(tmp_path):
    """A compiler that takes no time: it links by copying the library of this machine, and notes each link."""
    path = tmp_path / "bin" / "c++"
    path.parent.mkdir()
    path.write_text(
        "#!/bin/sh\n"
        "for out; do :; done\n"  # the last word
        f'if [ "$1" = -shared ]; then cp "{reason()}" "$out"; echo "$out" >> "{tmp_path}/links"; fi\n'
    )
    path.chmod(0o755)
    return path


def links(tmp_path: Path) -> int:
    return len((tmp_path / "links").read_text().splitlines())


def cut(path: Path) -> None:
    os.truncate(path, 5000)


def changed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def gone(path: Path) -> None:
    path.unlink()


def a_folder_without_content(path: Path) -> None:
    shutil.rmtree(path.parent)
    path.parent.mkdir()


@pytest.mark.parametrize("damage", [cut, changed, gone, a_folder_without_content])
def test_a_damaged_library_is_built_again_once(tmp_path, compiler, damage):
    path = build(tmp_path / "cache", str(compiler))
    whole = path.read_bytes()
    assert build(tmp_path / "cache", str(compiler)) == path and links(tmp_path) == 1
    damage(path)
    for _ in range(2):
        assert build(tmp_path / "cache", str(compiler)).read_bytes() == whole
    assert links(tmp_path) == 2 and not list((tmp_path / "cache").glob("*tmp*"))


def test_a_cut_library_does_not_end_the_process(tmp_path, compiler):
    cache = tmp_path / "home" / "handscroll"
    cut(build(cache, str(compiler)))
    code = "from handscroll.kernels.native.library import reason; print(reason())"
    search = f"{compiler.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "home"), "PATH": search},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and done.stdout.startswith(str(cache)), done
