"""Results that a benchmark keeps for the next run: each counts only under the settings with which it was made.

Not a benchmark itself: those that keep results call `claim` before they make one or take it up again.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def claim(result: Path, settings: Mapping[str, Any], instead: str = "give another --work") -> None:
    """Note the settings of a file or folder beside it, unless it was begun under these.

    Raises:
        SystemExit: it was begun under other settings, or made under some that nobody noted; `instead` says what to do.
    """
    beside, wanted = result.with_name(f"{result.name}.settings.json"), json.loads(json.dumps(settings))
    if not result.exists():
        result.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(wanted), encoding="utf-8")
        return
    if not beside.exists():
        raise SystemExit(f"{result} was made under settings that were not noted: {instead}, or remove it")
    if differs := difference(json.loads(beside.read_text(encoding="utf-8")), wanted):
        raise SystemExit(f"{result} was begun with {differs}: {instead}, or remove it")


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What differs between two settings, in words; "" if nothing does."""
    old, new = _flat(found), _flat(wanted)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {old.get(name)!r}, not {new.get(name)!r}" for name in names)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting by its dotted name (`tuning.lr`, `stages.0.steps`)."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
            value = {str(at): one for at, one in enumerate(value)}
        inner = _flat(value) if isinstance(value, Mapping) else {}
        found |= {f"{name}.{key}": one for key, one in inner.items()} or {name: value}
    return found
