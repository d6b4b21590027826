"""Where a checkpoint lies: a folder, a GGUF file, or what a hub id stands for."""

import re
from pathlib import Path

from handscroll.base.errors import CheckpointError
from handscroll.base.gguf import found_in, is_gguf
from handscroll.models.weights import ADAPTER, is_adapter, read_json

HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]
HUB_COPIES = ["*/*.safetensors", "consolidated*.safetensors"]  # the same weights for other programs


def here(source: str | Path) -> Path | None:
    """The path of a local checkpoint: a folder, or a GGUF file (given, or alone in its folder); None for a hub id.

    Raises:
        CheckpointError: `source` is none of these.
    """
    path = Path(source)
    if path.is_dir():
        _check_model(path)
        return path if (path / "config.json").exists() else found_in(path) or path
    if is_gguf(path):
        return path
    if path.exists():
        raise CheckpointError(f"{path} is a file; give the checkpoint folder that holds config.json, or a GGUF file")
    if path.suffix.lower() == ".gguf":
        raise CheckpointError(f"there is no file {path}")
    if not HUB_ID.match(str(source)):
        raise CheckpointError(f"{source} is neither a folder, a GGUF file nor a hub id of the form owner/name")
    return None


def locate(source: str | Path) -> Path:
    """The path of a checkpoint: a local one, or a downloaded hub id.

    Only safetensors and JSON are downloaded, no code and no pickle.

    Raises:
        CheckpointError: `source` is none of these.
    """
    if (path := here(source)) is not None:
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        fetched = Path(snapshot_download(str(source), allow_patterns=HUB_FILES, ignore_patterns=HUB_COPIES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{source} is not a local folder and could not be fetched from the hub: {reason}"
        ) from None
    _check_model(fetched)
    return fetched


def _check_model(path: Path) -> None:
    if is_adapter(path):
        base = read_json(path / ADAPTER).get("base_model_name_or_path") or "a base that it does not name"
        raise CheckpointError(
            f"{path} is an adapter, not a model: it changes {base}. Give that model, and the adapter with --adapter "
            f"{path} (in Python: load(model, adapter=...)); a command without that option takes the folder that "
            f"'handscroll export MODEL OUT --adapter {path}' writes"
        )
