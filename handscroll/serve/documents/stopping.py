"""A process that another thread may end."""

import subprocess
import threading
from collections.abc import Sequence

from handscroll.serve.errors import ClientGoneError


class Stop:
    """Ends the process that `written` waits for. It may be set at any time, from any thread."""

    def __init__(self):
        self._lock, self._set = threading.Lock(), False
        self._process: subprocess.Popen[bytes] | None = None

    def set(self) -> None:
        """End what goes on, and let nothing begin."""
        with self._lock:
            self._set = True
            if self._process is not None:
                self._process.kill()

    def written(self, command: Sequence[str], seconds: float) -> bytes | None:
        """What a command writes; None if it fails or takes longer.

        Raises:
            ClientGoneError: it was ended, or not begun.
        """
        with self._lock:
            if self._set:
                raise ClientGoneError
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            self._process = process
        with process:
            try:
                out = process.communicate(timeout=seconds)[0]
            except subprocess.TimeoutExpired:
                process.kill()
                out = None
        with self._lock:
            self._process = None
            if self._set:
                raise ClientGoneError
        return None if process.returncode else out
