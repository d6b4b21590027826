"""Finds the files that a recipe names: globs, folders, `{stdlib}` (the running Python's library) and exclusions."""

import sysconfig
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from handscroll.base.errors import DataError


def stdlib() -> Path:
    """The folder of the running Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def select(files: Sequence[str], exclude: Sequence[str] = (), include: Sequence[str] = ()) -> list[Path]:
    """The files that match the globs in `files`, each once, and sorted within each glob.

    In a glob `{stdlib}` stands for the standard library's folder. `exclude` and `include` are patterns on the path
    relative to the glob's fixed part (`test/*`, `argparse.py`). If `include` is given, only files that match one of its
    patterns are taken. Empty files (package markers) are left out.

    Raises:
        DataError: a pattern in `files` matches nothing, or no file is left.
    """
    chosen: dict[Path, None] = {}
    for pattern in files:
        root, _, glob = str(pattern.replace("{stdlib}", str(stdlib()))).partition("*")
        base = Path(root) if glob or root.endswith("/") else Path(root).parent
        if not glob:
            found = [Path(root)] if Path(root).is_file() else sorted(Path(root).rglob("*"))
        else:
            base = Path(root).parent if not root.endswith("/") else Path(root)
            tail = root[len(str(base)) :].lstrip("/") + "*" + glob
            found = sorted(base.glob(tail))
        there = [path for path in found if path.is_file()]
        found = [path for path in there if path.stat().st_size]
        if not found:
            raise DataError(f"{pattern!r}: {'all files are empty' if there else 'no file matches it'}")
        for path in found:
            name = path.relative_to(base).as_posix()
            wanted = not include or any(fnmatch(name, item) for item in include)
            if wanted and not any(fnmatch(name, item) for item in exclude):
                chosen[path] = None
    if not chosen:
        raise DataError(f"no file of {', '.join(files)} is left after exclude = {list(exclude)}")
    return list(chosen)
