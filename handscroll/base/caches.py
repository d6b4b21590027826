"""The user's cache folder, for files that can be made again (such as compiled kernels)."""

import os
from pathlib import Path

from handscroll.base.errors import ConfigError


def private_folder(name: str) -> Path:
    """The folder `handscroll/<name>` in the user's cache folder. It is created if needed; only this user may read it.

    Raises:
        ConfigError: there is no home folder, or it is not writable.
    """
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = root / "handscroll" / name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"the cache folder cannot be used ({error}): set XDG_CACHE_HOME to a folder that you may write to"
        ) from None
    return folder
