"""Frozen configuration models, TOML recipes and `--set table.key=value`."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from handscroll.base.errors import ConfigError, nearest


class Config(BaseModel):
    """Base of every configuration. It is frozen, and refuses unknown keys with the nearest valid name in the error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @classmethod
    def parse(cls, values: dict[str, Any], where: str) -> Self:
        """Validate `values` that came from `where` (a file name, an option).

        Raises:
            ConfigError: a value is wrong; the message gives the key, the value and what is allowed.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError("\n".join(_explain(cls, item, where) for item in error.errors())) from None


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a TOML recipe and apply `table.key=value` overrides (values are TOML, bare words are strings).

    Raises:
        ConfigError: the file is missing, is not TOML, or an override has no '='.
    """
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"recipe {path} does not exist; give the path of a TOML file") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"recipe {path} is not valid TOML: {error}") from None
    for override in overrides:
        apply_override(values, override)
    return values


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set `table.key=value` in nested dicts, in place. A number in the key is an index into a list of tables.

    Raises:
        ConfigError: the override has no '=', or its key leads into a value or past the end of a list.
    """
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--set {override!r}: expected table.key=value, for example --set optimizer.lr=0.001")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, key = name.strip().split(".")
    here: Any = values
    for table in tables:
        here = _step_into(here, table, override)
    if isinstance(here, list):
        raise ConfigError(f"--set {override!r}: give a key inside the list item, such as stages.0.steps=10")
    here[key] = value


def _step_into(here: Any, table: str, override: str) -> Any:
    if isinstance(here, list):
        if not table.isdigit() or int(table) >= len(here):
            raise ConfigError(
                f"--set {override!r}: {table!r} is not an index into the list, which has {len(here)} items; the first "
                "is 0"
            )
        return here[int(table)]
    inner = here.setdefault(table, {})
    if not isinstance(inner, dict | list):
        raise ConfigError(f"--set {override!r}: {table!r} is a value, not a table, so it has no keys")
    return inner


def _explain(cls: type[BaseModel], item: Any, where: str) -> str:
    path = ".".join(str(part) for part in item["loc"])
    # A check of a whole table writes its own message, which already says what came.
    if item["type"] == "value_error" and isinstance(item["input"], dict):
        return ": ".join(part for part in (where, path, item["msg"].removeprefix("Value error, ")) if part)
    if item["type"] != "extra_forbidden":
        return f"{where}: {path or 'value'}: {item['msg']} (got {item['input']!r})"
    owner, keys = _owner(cls, item["loc"])
    return f"{where}: unknown key '{'.'.join(keys)}': {nearest(keys[-1], owner.model_fields)}"


def _owner(cls: type[BaseModel], loc: Sequence[str | int]) -> tuple[type[BaseModel], list[str]]:
    """The configuration class that the last key at `loc` belongs to, and the keys as they stand in a recipe.

    pydantic adds a tag to `loc` for each member of a union; the returned keys leave these tags out.
    """
    kind, keys = cls, []
    for part in map(str, loc[:-1]):
        inner, tag = _inside(kind, part)
        keys += [] if tag else [part]
        kind = inner
    return next(iter(_models(kind)), cls), [*keys, str(loc[-1])]


def _inside(kind: Any, part: str) -> tuple[Any, bool]:
    """The type at `part` inside a value of type `kind`, and whether `part` is only the tag of a union's member."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return kind.model_fields[part].annotation if part in kind.model_fields else kind, False
    outer, inner = get_origin(kind), get_args(kind)
    if outer is Annotated:
        return _inside(inner[0], part)
    if outer in (dict, list, tuple):
        return inner[1 if outer is dict else 0], False
    members = [one for one in inner if one is not type(None)]
    if len(members) == 1:
        return _inside(members[0], part)
    return next((one for one in members if _tagged(one, part)), kind), True


def _tagged(member: Any, tag: str) -> bool:
    """Whether one of the member's fields allows `tag` as its only value."""
    fields = member.model_fields.values() if isinstance(member, type) and issubclass(member, BaseModel) else ()
    return any(get_args(field.annotation) == (tag,) for field in fields)


def _models(annotation: Any) -> list[type[BaseModel]]:
    """All configuration classes inside a field's type, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models(part)]
