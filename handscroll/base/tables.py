"""Tables of names: plain dicts from a public name to an import path.

CLI help, the README's lists and the conformance tests all use the same table.
A new method needs one file and one line in a table.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from handscroll.base.errors import ConfigError, nearest


def resolve(table: Mapping[str, str], name: str, what: str) -> Any:
    """Import the object that `name` stands for. The error message uses `what` as the kind of the name.

    Raises:
        ConfigError: the name is not in the table; the message suggests the nearest valid name.
    """
    if name not in table:
        raise ConfigError(f"unknown {what} '{name}': {nearest(name, table)}")
    module, _, attribute = table[name].partition(":")
    return getattr(import_module(module), attribute)
