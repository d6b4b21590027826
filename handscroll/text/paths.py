"""The files that a path stands for: a file, all of a folder, or the matches of a pattern; and what was not entered."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from handscroll.base.errors import DataError


@dataclass
class Found:
    """The files behind a path, in order, and what was met there and not taken, each with the reason."""

    files: list[Path] = field(default_factory=list)
    apart: list[str] = field(default_factory=list)


def home(path: str | Path) -> Path:
    """The path with ~ for the user's folder. (Word names its lock files ~$report.docx, after no user.)"""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def is_folder(path: Path) -> bool:
    """
    Raises:
        DataError: the system does not tell, since a folder above it is closed or the name is too long.
    """
    try:
        return path.is_dir()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from None


def within(folder: Path) -> Found:
    """The files in a folder and in the folders inside it, without hidden names.

    Raises:
        DataError: the folder cannot be opened.
    """
    found = Found()
    for paths in _walk(folder, found.apart):
        _sort(paths, found)
    return _once(found)


def not_entered(folder: Path) -> list[str]:
    """The folders inside a folder that are links or cannot be opened, each with the reason; hidden ones do not count.

    Raises:
        DataError: the folder cannot be opened.
    """
    apart: list[str] = []
    for _ in _walk(folder, apart):
        pass
    return apart


def _walk(folder: Path, apart: list[str]) -> Iterator[list[Path]]:
    """The files of each folder that is entered, without hidden names; `apart` gets the folders that are not."""
    closed: list[OSError] = []
    for here, folders, names in os.walk(folder, onerror=closed.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        apart += [_linked(Path(here, name)) for name in folders if Path(here, name).is_symlink()]
        yield [Path(here, name) for name in names if not name.startswith(".")]
    if closed and Path(closed[0].filename) == folder:
        raise DataError(_closed(folder, closed[0]))
    apart += [_closed(Path(error.filename), error) for error in closed]


def _sort(paths: Iterable[Path], found: Found) -> None:
    """Part files from links to nothing, and from pipes and the like, at which a reader would wait."""
    for path in paths:
        if path.is_file() or not (path.exists() or path.is_symlink()):
            found.files.append(path)
        elif not path.exists():
            found.apart.append(f"{path} is a link to nothing")
        else:
            found.apart.append(f"{path} is no file (a pipe, socket or device)")


def _linked(folder: Path) -> str:
    return f"folder {folder} is a link to another folder, and links are not entered; name it to read it as well"


def _closed(folder: Path, error: OSError) -> str:
    return f"folder {folder} cannot be opened ({error.strerror or error}); check its permissions"


def named(path: Path) -> Found:
    """The file of this path, or the files that it matches as a pattern.

    Raises:
        DataError: there is none.
    """
    if path.exists():
        return Found([path])
    if not glob.has_magic(str(path)):
        raise DataError(f"file {path} does not exist; check the path (relative paths start at {Path.cwd()})")
    matching = _matching(path)
    folders, shut, found = {one for one in matching if one.is_dir()}, dict(_shut(path)), Found()
    _sort([one for one in matching if one not in folders], found)
    found.apart += [*shut.values(), *_matched(path, folders - set(shut), found.files)]
    if not found.files:
        told = "".join(f"; {problem}" for problem in found.apart[:1])
        raise DataError(f"the pattern {path} matches no file; check it (** matches folders at any depth){told}")
    return _once(found)


def _matching(path: Path) -> list[Path]:
    # Path.glob takes no absolute pattern and matches hidden names.
    return [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207


def _matched(pattern: Path, folders: Iterable[Path], files: Sequence[Path]) -> Iterator[str]:
    """The folders that a pattern matches, without those in which it also matches files."""
    entered = {parent for file in files for parent in file.parents}
    for folder in sorted(set(folders) - entered):
        yield f"folder {folder} matches the pattern {pattern}, which takes files alone; name it to read it as well"


def _shut(pattern: Path) -> Iterator[tuple[Path, str]]:
    """The folders in which a pattern would look for files and which cannot be opened, and why."""
    for parent in (pattern, *pattern.parents):
        for folder in filter(Path.is_dir, _matching(parent)):
            try:
                with os.scandir(folder):
                    pass
            except OSError as error:
                yield folder, _closed(folder, error)
        if not glob.has_magic(str(parent)):
            return


def _once(found: Found) -> Found:
    """The files in order, each once: of several names of one file, those that are links are left out."""
    firsts: dict[Path, Path] = {}
    taken, twice = [], []
    for file in sorted(found.files, key=lambda file: (file.is_symlink(), file)):
        first = firsts.setdefault(file.resolve(), file)
        if first is file or not file.is_symlink():
            taken.append(file)
        else:
            twice.append(f"{file} is a link to a file that is read as {first}")
    return Found(sorted(taken), found.apart + twice)


def distinct(files: Sequence[Path]) -> None:
    """
    Raises:
        DataError: a file is named twice.
    """
    seen: dict[Path, Path] = {}
    for file in files:
        real = file.resolve()
        if real in seen:
            raise DataError(f"{file} is named twice (also as {seen[real]}); name it once")
        seen[real] = file
