"""The files behind the paths of a table: files, folders, globs, zip archives, and folders that `datasets` saved."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from handscroll.base.errors import DataError, nearest
from handscroll.data.table.table import Ledger
from handscroll.text.archive import opened
from handscroll.text.files import ROWS, Paths, blocks, kind, zipped
from handscroll.text.paths import distinct, home, is_folder, named, within

SUFFIXES = ROWS | {".json", ".arrow"}
ARCHIVE = ".zip"
ACCOUNT = ".account.json"  # beside rows that were cleaned: what became of each
_READ = f"{', '.join(sorted(SUFFIXES))} (also .gz and {ARCHIVE})"
_SPLITS = {"train": "train", "training": "train", "test": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "dev", "eval"), "validation"
)
_WORD = re.compile(rf"(?:^|[^a-z])({'|'.join(sorted(_SPLITS, key=len, reverse=True))})(?=[^a-z]|$)")


@dataclass(frozen=True)
class Source:
    """One file of rows; `data` holds the bytes of a part of an archive."""

    path: Path
    data: bytes | None = None

    @property
    def kind(self) -> str:
        """The suffix that tells what the file is."""
        return kind(self.path)

    def blocks(self) -> Iterator[bytes]:
        """Its bytes.

        Raises:
            DataError: the file cannot be read.
        """
        return blocks(self.path) if self.data is None else iter([self.data])


def account_of(file: Path) -> Path:
    """Where the account of a file of rows stands, if it has one."""
    return file.with_name(file.name + ACCOUNT)


def sources(paths: Paths, split: str | None, step: Ledger) -> list[Source]:
    """The files behind `paths`; files of folders and archives that hold no rows are counted in `step`.

    `split` (train, validation, test, or another name) picks from folders and archives whose files are named by split.

    Raises:
        DataError: no path, a missing file, one of another kind, one named twice, a folder without rows, one with
            several splits where none is picked, or a split that nothing has.
    """
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    if not paths:
        raise DataError(f"no files to read; name tables, folders or globs. Allowed: {_READ}")
    found: list[Source] = []
    for path in paths:
        here = home(path)
        if is_folder(here):
            found += [Source(file) for file in _folder(here, split, step)]
            continue
        matching = named(here)
        _note(matching.apart, step)
        for file in matching.files:
            if file.name.endswith(ACCOUNT) and len(matching.files) > 1:
                continue
            if file.suffix.lower() == ARCHIVE:
                found += _archive(file, split, step)
            else:
                found.append(Source(_readable(file)))
                if split is not None:
                    raise DataError(f"{file} is a single file and has no splits; name it without the split '{split}'")
    distinct([source.path for source in found])
    return found


def _note(problems: Sequence[str], step: Ledger) -> None:
    for problem in problems:
        step.note(f"not read: {problem}")


def _readable(file: Path) -> Path:
    if kind(file) not in SUFFIXES:
        raise DataError(
            f"{file}: '{kind(file) or 'no suffix'}' is no kind of table that is read. Allowed: {_READ}. Rename the "
            "file, or save it as .csv or .jsonl"
        )
    if kind(file) in (".parquet", ".arrow") and zipped(file):
        raise DataError(f"{file}: a {kind(file)} file is packed already and is not read out of .gz; unpack it (gunzip)")
    return file


def _folder(here: Path, split: str | None, step: Ledger) -> list[Path]:
    if (here / "dataset_dict.json").is_file():
        splits = _json(here / "dataset_dict.json").get("splits") or []
        return _saved(here / _picked(splits, split, here))
    if (here / "state.json").is_file() and (here / "dataset_info.json").is_file():
        if split is not None:
            raise DataError(f"{here} is one saved data set without splits; name it without the split '{split}'")
        return _saved(here)
    found = within(here)
    _note(found.apart, step)
    taken = _of_kind(found.files, here, step)
    return _of_split(taken, [file.relative_to(here) for file in taken], split, here)


def _saved(here: Path) -> list[Path]:
    """The Arrow files of a data set that `datasets` saved to disk, in its order."""
    state = _json(here / "state.json")
    if state.get("_indices_data_files"):
        raise DataError(
            f"{here}: the saved data set keeps the order of its rows in an index, which is not read; call its "
            "flatten_indices() and save it again"
        )
    names = [str(one.get("filename")) for one in state.get("_data_files") or []]
    for name in names:
        if Path(name).name != name or Path(name).suffix != ".arrow":
            raise DataError(f"{here}: state.json names '{name}', which is no .arrow file of this folder; save it again")
    files = [here / name for name in names]
    missing = next((file for file in files if not file.is_file()), None)
    if not files or missing is not None:
        raise DataError(
            f"{here}: {missing or 'state.json names no file'}: the saved data set is incomplete; save it again"
        )
    return files


def _json(file: Path) -> dict:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read ({error}); save the data set again") from None
    if not isinstance(found, dict):
        raise DataError(f"{file} does not hold a JSON object; save the data set again")
    return found


def _archive(file: Path, split: str | None, step: Ledger) -> list[Source]:
    with opened(file) as archive:
        names = [name for name in sorted(archive.names) if not name.endswith("/")]
        parts = [
            Path(name) for name in names if not any(part.startswith((".", "__MACOSX")) for part in Path(name).parts)
        ]
        found = _of_kind(parts, file, step)
        taken = _of_split(found, found, split, file)
        return [Source(file / part, archive.read(part.as_posix())) for part in taken]


def _of_kind(files: Sequence[Path], here: Path, step: Ledger) -> list[Path]:
    taken, other = [], Counter[str]()
    for file in files:
        if file.name.endswith(ACCOUNT):
            continue
        if kind(file) in SUFFIXES and not (zipped(file) and here.suffix.lower() == ARCHIVE):
            taken.append(file)
        else:
            other[file.suffix.lower() or "no suffix"] += 1
    if not taken:
        raise DataError(f"{here} holds no tables. Allowed: {_READ}")
    if other:
        names = ", ".join(f"{count} {name}" for name, count in other.most_common())
        step.note(f"{here}: files that are no tables were not read: {names}")
    return taken


def _of_split(files: list[Path], names: Sequence[Path], split: str | None, here: Path) -> list[Path]:
    """The files of one split, where their names tell splits; `names` are the paths in the folder or archive."""
    told = {file: _split_of(name) for file, name in zip(files, names, strict=True)}
    splits = sorted(set(told.values()) - {""})
    if split is None and len(splits) < 2:
        return files
    picked = _picked(splits, split, here)
    return [file for file in files if told[file] == picked]


def _split_of(name: Path) -> str:
    found = [_SPLITS[word] for part in reversed(name.parts) for word in _WORD.findall(part.lower())]
    return found[0] if found else ""


def _picked(splits: Sequence[str], split: str | None, here: Path) -> str:
    if split is None:
        raise DataError(
            f"{here} has several splits ({', '.join(splits)}), which are not mixed: name one (--split {splits[0]}; "
            f"for a tuning run --set data.splits.train={splits[0]}), or name its files"
        )
    wanted = split if split in splits else _SPLITS.get(split.lower(), split)
    same = [one for one in splits if one == wanted or _SPLITS.get(one.lower()) == wanted]
    if not same:
        raise DataError(f"{here} has no split '{split}': {nearest(split, splits)}")
    return same[0]
