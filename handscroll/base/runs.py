"""Durable writes: files and checkpoint folders that survive a kill, a full disk and a crash of the machine.

docs/runs.md explains the protocol and its reasons. It works on POSIX systems only, where a rename within one folder is
atomic, and a folder can be opened and synced. This module imports no torch, so tests can try hundreds of faults in
seconds.
"""

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from handscroll.base.errors import CheckpointError, ConfigError

Entry = dict[str, Any]
"""A file's entry in a manifest: its "size" in bytes and the "sha256" of its content."""

Content = bytes | Callable[[Path], Entry | None]
"""The content of a file: its bytes, or a function that writes the file at a given path.

The function may return the entry that `write_chunks` returned; then the file is checked against it. If it returns None,
the entry is computed from the file itself, so bytes that the disk lost after it reported them as written go unnoticed.
"""

MANIFEST = "manifest.json"
LATEST = "latest"
STEP_NAME = re.compile(r"step-(\d{6,})")

_FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TEMPORARY = re.compile(r".+\.tmp-(\d+)-([0-9a-f]{8})")
_TOKEN = secrets.token_hex(4)  # in containers two processes may have the same id; this token distinguishes them
_ADVICE = {
    errno.ENOSPC: "Free some space or choose another disk",
    errno.EDQUOT: "Your quota on this disk is used up. Free some space or choose another disk",
    errno.EFBIG: "The file is larger than a limit allows (ulimit -f, or that of the file system). Raise the limit",
    errno.EROFS: "The disk is mounted read-only. Choose another folder",
    errno.EACCES: "Choose a folder that you may write to",
    errno.EIO: "The disk reports a fault. Choose another disk and check this one",
}
# A checkpoint needs about six files. If the disk has fewer inodes left than this, inodes are missing and not bytes.
_FEW_FILES = 16
_log = logging.getLogger("handscroll.runs")


@contextmanager
def saving(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn an OSError in the block into a CheckpointError that names `path`, the bytes needed and the bytes free."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(_explain(path, error, needed)) from error


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of `data`. Near a full disk or a limit the kernel may write only a part and still report success.

    Raises OSError.
    """
    rest = memoryview(data).cast("B")
    while rest:
        taken = os.write(descriptor, rest)
        if taken == 0:
            raise OSError(errno.EIO, "The disk takes no bytes and reports no error")
        rest = rest[taken:]


def write_chunks(path: Path, chunks: Iterable[bytes | memoryview]) -> Entry:
    """Write `chunks` one after another into a new file, for files that are too large to hold in memory twice.

    Returns the size and SHA-256 of the given bytes. The file is not durable yet: call this function inside a content
    function that is given to `write_file` or `write_folder`. Raises OSError.
    """
    size, digest = 0, hashlib.sha256()
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
        for chunk in chunks:
            write_all(descriptor, chunk)
            size += memoryview(chunk).nbytes
            digest.update(chunk)
    return {"size": size, "sha256": digest.hexdigest()}


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable. Raises OSError."""
    with _opened(path, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        os.fsync(descriptor)


def write_file(path: Path, content: Content) -> None:
    """Replace the file `path` as a whole. After any crash it holds either the old content or the new content.

    The folder must exist.

    Raises:
        CheckpointError: the system refused to write; the old content is still there.
    """
    temporary = _temporary(path)
    with saving(path, len(content) if isinstance(content, bytes) else None):
        try:
            _fill(temporary, content)
            temporary.replace(path)
            sync_folder(path.parent)
        except BaseException:
            _discard(temporary)
            raise


def write_folder(final: Path, files: Mapping[str, Content], needed: int | None = None) -> None:
    """Write a folder of files with a manifest. `final` exists only when it is complete, durable and verified.

    `needed` is the size in bytes if the caller knows it; only the error message uses it. A damaged folder of the same
    name is replaced. A valid folder with the same content stays as it is. The parent folder must exist.

    Raises:
        CheckpointError: the system refused to write, the files differ when they are read back, or `final` holds other
            valid content. In all these cases `final` holds nothing new.
    """
    for name in files:
        assert _NAME.fullmatch(name) and name != MANIFEST, f"not a plain file name: {name!r}"
    if needed is None and all(isinstance(content, bytes) for content in files.values()):
        needed = sum(len(content) for content in files.values() if isinstance(content, bytes))
    temporary = _temporary(final)
    published = False
    with saving(final, needed):
        try:
            _discard(temporary)
            temporary.mkdir()
            entries = {name: _fill(temporary / name, content) for name, content in files.items()}
            manifest = _manifest_bytes(entries)
            _fill(temporary / MANIFEST, manifest)
            sync_folder(temporary)
            if not _make_room(final, manifest):
                _discard(temporary)
                return
            temporary.rename(final)
            published = True
            sync_folder(final.parent)
            verify_folder(final)
        except BaseException:
            if published:
                with suppress(OSError):
                    final.rename(temporary)
            _discard(temporary)
            raise


def verify_folder(path: Path) -> None:
    """Compare every file of a folder with its manifest: sizes, SHA-256, no missing and no extra files.

    This detects accidents, not forgery: a person who can change a file can change the manifest too.

    Raises:
        CheckpointError: a file is damaged, missing, extra or unreadable; the message names the first one.
    """
    entries = _read_manifest(path)
    try:
        present = {entry.name for entry in path.iterdir()} - {MANIFEST}
        for name in sorted(present - entries.keys()):
            raise _damaged(path, f"{name} is not in {MANIFEST}")
        for name, entry in entries.items():
            if name not in present or not (path / name).is_file() or (path / name).is_symlink():
                raise _damaged(path, f"{name} is missing or not a plain file")
            size = (path / name).stat().st_size
            if size != entry["size"]:
                raise _damaged(path, f"{name} has {size} bytes, but the manifest says {entry['size']}")
        digests = _digests([path / name for name in entries])
        for name, entry in entries.items():
            if digests[name] != entry["sha256"]:
                raise _damaged(path, f"the SHA-256 of {name} differs from the manifest")
    except OSError as error:
        raise _damaged(path, f"{error.filename or 'a file'} cannot be read: {error.strerror}") from error


def commit_checkpoint(
    run: Path,
    step: int,
    files: Mapping[str, Content],
    keep: int = 2,
    needed: int | None = None,
    spare: Collection[int] = (),
) -> Path:
    """Write `run/step-NNNNNN/`, point `latest` to it, then remove all but the `keep` newest valid checkpoints.

    Those of the steps in `spare` are not removed either.

    Call it under a `RunLock` (base/lock.py): leftovers of other processes are recognised by their process id on this
    machine. If an old checkpoint cannot be removed, the logger `handscroll.runs` reports it, and the save still counts.

    Raises:
        CheckpointError: the system refused to write, or the run already has a newer valid checkpoint (see `rewind`).
            All earlier checkpoints are still there.
        ConfigError: `keep` is below 2.
    """
    if keep < 2:
        raise ConfigError(f"keep={keep}: keep at least 2 checkpoints, so that one damaged file does not end the run")
    assert step >= 0, f"negative step {step}"
    with saving(run):
        make_folder(run)
        _sweep(run)
    for folder in _checkpoints(run):
        if checkpoint_step(folder) > step and is_valid(folder):
            raise CheckpointError(
                f"{run} already holds {folder.name}, which is newer than step {step}: resume from it, or remove the "
                f"newer checkpoints with rewind()"
            )
    final = run / f"step-{step:06d}"
    write_folder(final, files, needed)
    write_file(run / LATEST, f"{final.name}\n".encode())
    _prune(run, keep, spare)
    return final


def latest_checkpoint(run: Path) -> Path | None:
    """The newest valid checkpoint, or None for a run that has not saved one yet.

    If the newest one is damaged, an older one is returned, and the logger `handscroll.runs` writes a warning.

    Raises:
        CheckpointError: there are checkpoints, or `latest` names one, but none is valid. A new start would hide this
            loss.
    """
    problems = []
    promised = _read_latest(run)
    for folder in _checkpoints(run):
        try:
            verify_folder(folder)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if promised and promised > checkpoint_step(folder) and not problems:
            problems.append(f"{run / LATEST} names step {promised}, which is not there")
        if problems:
            _log.warning("falling back to %s: %s", folder, "; ".join(problems))
        return folder
    if promised is not None and not problems:
        problems.append(f"{run / LATEST} names step {promised}, which is not there")
    if problems:
        raise CheckpointError(f"{run} has no valid checkpoint left: start in a new folder. " + "; ".join(problems))
    return None


def checkpoint_step(folder: Path) -> int:
    """The step number in a checkpoint's name: step-000200 -> 200.

    Raises:
        CheckpointError: the name does not have this form.
    """
    match = STEP_NAME.fullmatch(folder.name)
    if match is None:
        raise CheckpointError(f"{folder} is not a checkpoint: expected a name such as step-000200")
    return int(match[1])


def saved_steps(run: Path) -> list[int]:
    """The steps of the checkpoints in a folder, newest first, by their names: they may be damaged."""
    return [checkpoint_step(folder) for folder in _checkpoints(run)]


def rewind(run: Path, step: int) -> Path:
    """Remove every checkpoint after `step`, so that `step` is the newest one again; returns its folder.

    Raises:
        CheckpointError: there is no valid checkpoint of that step (nothing is removed), or the system refused to write.
    """
    target = run / f"step-{step:06d}"
    verify_folder(target)
    write_file(run / LATEST, f"{target.name}\n".encode())
    remove_after(run, step)
    return target


def remove_after(run: Path, step: int) -> None:
    """Remove every checkpoint after `step`. There need not be one of `step` or before it.

    Raises:
        CheckpointError: the system refused to write.
    """
    found = _checkpoints(run)
    later = [folder for folder in found if checkpoint_step(folder) > step]
    if not later:
        return
    if len(later) < len(found):
        write_file(run / LATEST, f"{found[len(later)].name}\n".encode())
    else:
        with saving(run):
            (run / LATEST).unlink(missing_ok=True)
    for folder in later:
        with saving(folder):
            _retire(folder)


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _fill(path: Path, content: Content) -> Entry:
    """Create a file, make its content durable, and return its size and SHA-256.

    Both are computed from the given bytes if they are known, because the file cannot show which bytes a disk lost.
    """
    given = write_chunks(path, [content]) if isinstance(content, bytes) else content(path)
    with _opened(path, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise"):
            # Without this, verification would read the page cache and not the disk. It is only advice, so it may fail.
            with suppress(OSError):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        size = os.fstat(descriptor).st_size
    entry = given or {"size": size, "sha256": _sha256(path)}
    if entry["size"] != size:
        raise OSError(errno.EIO, f"The disk reported {entry['size']:,} bytes as written but holds {size:,}")
    return entry


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digests(paths: list[Path]) -> dict[str, str]:
    """SHA-256 by name. Several threads hash large files, because hashlib releases the interpreter lock."""
    if sum(path.stat().st_size for path in paths) < 64 << 20:
        return {path.name: _sha256(path) for path in paths}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip([path.name for path in paths], pool.map(_sha256, paths), strict=True))


def _manifest_bytes(entries: Mapping[str, Entry]) -> bytes:
    return (json.dumps({"files": entries, "format": _FORMAT}, indent=1, sort_keys=True) + "\n").encode()


def _read_manifest(folder: Path) -> dict[str, Entry]:
    try:
        data = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise _damaged(folder, f"{MANIFEST} cannot be read: {error.strerror}") from error
    try:
        manifest = json.loads(data)
        if manifest["format"] != _FORMAT:
            raise CheckpointError(
                f"{folder} has checkpoint format {manifest['format']!r}; this version of Handscroll reads {_FORMAT}"
            )
        entries = {
            str(name): {"size": int(entry["size"]), "sha256": str(entry["sha256"])}
            for name, entry in manifest["files"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise _damaged(folder, f"{MANIFEST} is not a manifest: {error}") from None
    # A manifest must equal its canonical form byte for byte, so that any flipped bit in it is detected.
    if _manifest_bytes(entries) != data or not all(_NAME.fullmatch(name) for name in entries):
        raise _damaged(folder, f"{MANIFEST} was changed after it was written")
    return entries


def _damaged(folder: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{folder} is not a valid checkpoint: {what}. Use another checkpoint or copy it again")


def is_valid(folder: Path) -> bool:
    """Whether a folder that `write_folder` wrote is there and undamaged."""
    try:
        verify_folder(folder)
    except CheckpointError:
        return False
    return True


def _make_room(final: Path, manifest: bytes) -> bool:
    """Move a damaged folder out of the way; False if `final` already holds the same valid content."""
    if not final.exists():
        return True
    if not is_valid(final):
        _log.warning("replacing the damaged %s", final)
        _retire(final)
        return True
    if (final / MANIFEST).read_bytes() == manifest:
        return False
    raise CheckpointError(f"{final} already holds another valid checkpoint: move it away or use another run folder")


def _checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders of a run, newest first, valid or not."""
    try:
        found = [path for path in run.iterdir() if STEP_NAME.fullmatch(path.name)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{run} cannot be read: {error.strerror}; choose a run folder") from error
    return sorted(found, key=checkpoint_step, reverse=True)


def _read_latest(run: Path) -> int | None:
    """The step that the file `latest` names; None if there is no such file."""
    try:
        data = (run / LATEST).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        data = repr(error).encode()
    match = STEP_NAME.fullmatch(data.decode("ascii", "replace").removesuffix("\n"))
    if match is None:
        # `latest` only points to a folder, and the folders are verified themselves. So a damaged pointer is no error.
        _log.warning("%s is unreadable and was ignored: %r", run / LATEST, data[:200])
    return int(match[1]) if match else None


def _prune(run: Path, keep: int, spare: Collection[int]) -> None:
    """Remove checkpoints older than the `keep` newest valid ones; damaged ones do not count."""
    valid = 0
    for folder in _checkpoints(run):
        if valid < keep:
            valid += is_valid(folder)
            continue
        if checkpoint_step(folder) in spare:
            continue
        try:
            _retire(folder)
        except OSError as error:
            _log.warning("the old checkpoint %s could not be removed: %s", folder, error)


def _retire(folder: Path) -> None:
    """Remove a checkpoint. It is renamed first, so that a crash during removal leaves no incomplete checkpoint."""
    aside = _temporary(folder.with_name(f"{folder.name}.old"))
    _discard(aside)
    folder.rename(aside)
    _discard(aside)


def _sweep(run: Path) -> None:
    """Remove temporary files and folders of processes that no longer run."""
    for path in run.iterdir():
        match = _TEMPORARY.fullmatch(path.name)
        if match and not _is_alive(int(match[1]), match[2]):
            _discard(path)


def _is_alive(pid: int, token: str) -> bool:
    if pid == os.getpid():
        return token == _TOKEN
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.tmp-{os.getpid()}-{_TOKEN}")


def _discard(path: Path) -> None:
    """Remove a file or folder as far as the system allows. `_sweep` later removes the rest, by its temporary name."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
    with suppress(OSError):
        path.lstat()
        _log.warning("the leftover %s could not be removed", path)


def make_folder(path: Path) -> None:
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        sync_folder(path.parent)


def _explain(path: Path, error: OSError, needed: int | None) -> str:
    free, advice = "unknown", _ADVICE.get(error.errno or 0, "Check the disk and the folder")
    for folder in [path, *path.absolute().parents]:
        with suppress(OSError):
            free = f"{shutil.disk_usage(folder).free:,}"
            disk = os.statvfs(folder)
            # f_files is 0 if the file system does not count its files.
            if error.errno == errno.ENOSPC and disk.f_files and disk.f_favail < _FEW_FILES:
                advice = f"The disk takes only {disk.f_favail} more files (inodes): remove some or choose another disk"
            break
    room = f"needed: {'unknown' if needed is None else f'{needed:,}'} bytes, free: {free} bytes"
    name = errno.errorcode.get(error.errno or 0, "OSError")
    return f"cannot write {path}: {error.strerror or error} [{name}] ({room}). {advice}. Earlier saves are intact"
