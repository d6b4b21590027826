"""A lock that allows one writer per run folder."""

import json
import os
import socket
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from handscroll.base.errors import CheckpointError
from handscroll.base.runs import make_folder, saving, write_file


class RunLock:
    """Allows one writer per run folder. The kernel frees the lock when its process ends in any way.

    `with RunLock(run): ...` creates the folder if needed. Limits: on a network disk the lock is only as reliable as
    that disk's flock. The lock is not re-entrant.
    """

    def __init__(self, run: Path, wait: float = 0.5) -> None:
        """Prepare the lock of `run`. A second writer waits `wait` seconds before it is refused."""
        self.run = run
        self._wait = wait
        self._owner = run / "writer.json"
        self._lock: FileLock | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            CheckpointError: another process writes to this run, or the folder is not writable.
        """
        assert self._lock is None, "this lock is already held"
        with saving(self.run):
            make_folder(self.run)
            lock = FileLock(self.run / "writer.lock", thread_local=False)
            try:
                lock.acquire(timeout=self._wait, poll_interval=0.05)
            except Timeout:
                raise CheckpointError(
                    f"{self.run} is in use{self._describe_owner()}: wait for it, stop it, or choose another folder"
                ) from None
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now().isoformat(" ", "seconds")}
        try:
            write_file(self._owner, json.dumps(owner).encode())
        except BaseException:
            lock.release()
            raise
        self._lock = lock

    def release(self) -> None:
        """Release the lock; does nothing if it is not held."""
        if self._lock is not None:
            with suppress(OSError):
                self._owner.unlink()
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _describe_owner(self) -> str:
        try:
            owner = json.loads(self._owner.read_bytes())
            return f" by process {owner['pid']} on {owner['host']} since {owner['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return " by another process"
