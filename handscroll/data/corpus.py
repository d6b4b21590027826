"""Finds the files that a recipe names: globs, folders, `{stdlib}` (the running Python's library) and exclusions."""

import glob
import logging
import sysconfig
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from handscroll.base.errors import DataError
from handscroll.text.paths import not_entered

_log = logging.getLogger("handscroll.files")


def stdlib() -> Path:
    """The folder of the running Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def select(files: Sequence[str], exclude: Sequence[str] = (), include: Sequence[str] = ()) -> list[Path]:
    """The files that match the globs in `files`, each once, and sorted within each glob.

    `{stdlib}` stands for the standard library's folder. `exclude` and `include` are patterns on the path relative to
    the glob's fixed part (`test/*`, `argparse.py`), or on the path as `files` writes it, or on the whole path. If
    `include` is given, only files that match one of its patterns are taken. What is excluded under one glob is left out
    of all. Empty files (package markers) are left out. The log tells patterns with wildcards that exclude nothing, and
    folders that are links or cannot be opened.

    Raises:
        DataError: a pattern in `files` or `include`, or a name without wildcards in `exclude`, matches nothing, or no
            file is left.
    """
    chosen: dict[Path, Path] = {}  # by the resolved path, so that a file in two spellings is one
    excluded = set[Path]()
    out, wanted = (_Patterns(items) for items in (exclude, include))
    for pattern in files:
        base, there = _found(pattern)
        if not any(path.stat().st_size for path in there):
            raise DataError(f"{pattern!r}: {'all files are empty' if there else 'no file matches it'}")
        for path in there:
            leave, take = out.match(path, base), wanted.match(path, base) or not include
            if leave:
                excluded.add(path.resolve())
            elif take and path.stat().st_size:
                chosen.setdefault(path.resolve(), path)
    for kind, item in (*(("exclude", item) for item in out.idle), *(("include", item) for item in wanted.idle)):
        if kind == "include" or not any(sign in item for sign in "*?["):
            raise DataError(
                f"{kind} = {item!r}: no file of {', '.join(files)} has this name. Give a path relative to the fixed "
                "part of a glob in files, or a whole path ({stdlib}/... too), or leave the pattern out"
            )
        _log.warning("exclude = %r matches no file of %s", item, ", ".join(files))
    left = [path for resolved, path in chosen.items() if resolved not in excluded]
    if not left:
        raise DataError(f"no file of {', '.join(files)} is left after exclude = {list(exclude)}")
    return left


class _Patterns:
    """Patterns on paths, and which of them have matched nothing so far."""

    def __init__(self, items: Sequence[str]):
        library = glob.escape(str(stdlib()))
        self._items = [(item, item.replace("{stdlib}", library).removeprefix("./")) for item in items]
        self.idle = dict.fromkeys(items)

    def match(self, path: Path, base: Path) -> bool:
        found = [item for item, full in self._items if _matches(path, base, full)]
        for item in found:
            self.idle.pop(item, None)
        return bool(found)


def _matches(path: Path, base: Path, pattern: str) -> bool:
    """Whether a pattern on the path, as it is written or as a whole, or on the path relative to `base` matches."""
    if pattern.startswith("/"):
        return fnmatch(path.absolute().as_posix(), pattern)
    written = pattern.startswith(f"{base.as_posix()}/") and fnmatch(path.as_posix(), pattern)
    return written or fnmatch(path.relative_to(base).as_posix(), pattern)


def _found(pattern: str) -> tuple[Path, list[Path]]:
    """The fixed part of a glob, and the files that it names."""
    root, star, rest = pattern.replace("{stdlib}", str(stdlib())).partition("*")
    if not star and Path(root).is_file():
        return Path(root).parent, [Path(root)]
    base = Path(root) if not star or root.endswith("/") else Path(root).parent
    below = root.rpartition("/")[2] + star + rest
    for start in filter(Path.is_dir, _entered(base, below) if star else [base]):
        for folder in _apart(start, named=start == base):
            _log.warning("files = %r: %s", pattern, folder)
    found = base.glob(below) if star else base.rglob("*")
    return base, [path for path in sorted(found) if path.is_file()]


def _apart(start: Path, named: bool) -> list[str]:
    """The folders in and below `start` that are not entered.

    Raises:
        DataError: `start` is `named` by the user, not found by a wildcard, and cannot be opened.
    """
    try:
        return not_entered(start)
    except DataError as error:
        if named:
            raise
        return [str(error)]


def _entered(base: Path, below: str) -> Iterable[Path]:
    """The folders that a pattern below `base` enters at any depth: those that its part before ** names."""
    starts, deep, _ = below.partition("**")
    if not deep:
        return ()
    return base.glob(starts) if starts else [base]
