"""Settings that carry a name, such as an objective, a task or a scaling: written with it, and read back by it."""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import SerializerFunctionWrapHandler, model_serializer

from handscroll.base.config import Config
from handscroll.base.errors import ConfigError
from handscroll.base.tables import resolve


class Named(Config):
    """Base of settings that a table of names knows; what they write holds their name, so `named` can read it back."""

    name: ClassVar[str]

    @model_serializer(mode="wrap")
    def _with_name(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"name": self.name, **handler(self)}


Kind = TypeVar("Kind", bound=Named)


def named(kind: type[Kind], table: Mapping[str, str], values: Any, what: str, where: str, such: str) -> Kind:
    """Settings of a `kind` from a name, or from a mapping with a name and fields; settings are returned as they are.

    `what` is what the name stands for, `where` the values came from, and `such` an example for the error.

    Raises:
        ConfigError: the name is missing or unknown, or a field is wrong; the message gives the nearest valid name.
    """
    if isinstance(values, kind):
        return values
    values = {"name": values} if isinstance(values, str) else values
    if not isinstance(values, dict) or not isinstance(values.get("name"), str):
        raise ConfigError(f"{where}: expected a name of {what}, or a table with a name, such as {such}")
    fields = {key: value for key, value in values.items() if key != "name"}
    return resolve(table, values["name"], what).parse(fields, where)
