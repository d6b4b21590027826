"""The small files beside a tokenizer: its settings, its special tokens, tokens added later, and the chat template."""

import json
from pathlib import Path
from typing import Any

from handscroll.base.errors import CheckpointError
from handscroll.text.special import ROLES

SETTINGS = "tokenizer_config.json"


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of a tokenizer's folder, in the form of `tokenizer_config.json`.

    `special_tokens_map.json` and `added_tokens.json` count where that file has no `added_tokens_decoder`, as in
    `transformers`: newer files repeat them there.

    Raises:
        CheckpointError: a file is damaged.
    """
    settings = read_object(folder / SETTINGS)
    if (template := _templates(folder, settings)) is not None:
        settings["chat_template"] = template
    if "added_tokens_decoder" in settings:
        return settings
    for role, token in read_object(folder / "special_tokens_map.json").items():
        # `transformers` reads an object in `tokenizer_config.json` only with this mark.
        settings[role] = {"__type": "AddedToken", **token} if isinstance(token, dict) else token
    roles = [settings.get(f"{role}_token") for role in ROLES]
    extra = settings.get("additional_special_tokens")
    named = [*roles, *(extra if isinstance(extra, list) else [])]
    special = {str(token.get("content") if isinstance(token, dict) else token) for token in named}
    added = read_object(folder / "added_tokens.json")
    if added:
        settings["added_tokens_decoder"] = {
            str(number): {"content": name, "special": name in special, "normalized": name not in special}
            for name, number in added.items()
        }
    return settings


def _templates(folder: Path, settings: dict[str, Any]) -> Any:
    """The chat templates of a folder: files of their own go before the settings, as in `transformers`."""
    files = {file.stem: read_text(file) for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (usual := folder / "chat_template.jinja").is_file():
        files = {"default": read_text(usual), **files}
    if files:
        named = [{"name": name, "template": text} for name, text in files.items()]
        return files["default"] if list(files) == ["default"] else named
    return settings.get("chat_template", read_object(folder / "chat_template.json").get("chat_template"))


def clear(folder: Path) -> None:
    """Remove the files that would count beside the `tokenizer_config.json` of another tokenizer."""
    names = ("chat_template.jinja", "chat_template.json", "special_tokens_map.json", "added_tokens.json")
    templates = folder / "additional_chat_templates"
    for file in (*(folder / name for name in names), *templates.glob("*.jinja")):
        file.unlink(missing_ok=True)


def read_text(file: Path) -> str:
    """The text of a file.

    Raises:
        CheckpointError: it is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file} is not UTF-8 ({error.reason} at offset {error.start}); copy it again") from None


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none.

    Raises:
        CheckpointError: the file is not JSON, or holds something else.
    """
    if not file.is_file():
        return {}
    try:
        content = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not valid JSON ({error}); copy it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a JSON {type(content).__name__}, not an object; copy it again")
    return content
