"""Where things are kept between runs that can be made again: the user's cache folder."""

import os
from pathlib import Path

from handscroll.base.errors import ConfigError


def private_folder(name: str) -> Path:
    """The folder `handscroll/<name>` in the user's cache folder, made if needed, for this user alone.

    Raises:
        ConfigError: there is no home folder, or it cannot be written to.
    """
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = root / "handscroll" / name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"no cache folder: {error}; set XDG_CACHE_HOME to a folder you may write to") from None
    return folder
