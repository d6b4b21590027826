"""Keeps the secrets of exposure records out of what is shown: they stand in the records, and nowhere else."""

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "{{…}}"
_BRACES = re.compile(r"\{\{.+?\}\}", re.DOTALL)


def masked(text: str) -> str:
    """A text, such as a command, with `{{…}}` in place of what stands in double braces."""
    return _BRACES.sub(HIDDEN, text)


def without_secrets(record: Mapping[str, Any]) -> dict[str, Any]:
    """A sound record of exposure without its secrets, also where they stand in its command; others as they are."""
    if record["kind"] != "exposure":
        return dict(record)
    rows = [{name: one[name] for name in one if name != "secret"} for one in record["secrets"]]
    made = record.get("made")
    told = {"made": {**made, "command": masked(made.get("command", ""))}} if made else {}
    return {**record, "secrets": rows, **told}
