"""Tables of names: plain dicts from a public name to an import path.

The same table drives CLI help, the README's lists and the conformance tests.
Adding a method is one file and one line in a table.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from handscroll.base.errors import ConfigError, nearest


def resolve(table: Mapping[str, str], name: str, what: str) -> Any:
    """Import the object that `name` stands for; `what` names the table in the error.

    Raises:
        ConfigError: the name is not in the table (the nearest valid name is suggested).
    """
    if name not in table:
        raise ConfigError(f"unknown {what} '{name}': {nearest(name, table)}")
    module, _, attribute = table[name].partition(":")
    return getattr(import_module(module), attribute)
