"""The cache policies by name. To add one, add a file beside this and a line here; its properties are class attributes.

A policy may have options: "retrieval:blocks=16,measure=0", "h2o:budget=512". They are the fields of its class.
"""

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

from handscroll.base.errors import ConfigError, nearest
from handscroll.base.workload import Footprint
from handscroll.cache.cache import Cache
from handscroll.cache.full import FullCache
from handscroll.cache.h2o import H2OCache
from handscroll.cache.int4 import Int4Cache
from handscroll.cache.int8 import Int8Cache
from handscroll.cache.offload import OffloadCache
from handscroll.cache.retrieval import RetrievalCache
from handscroll.cache.sinks import SinksCache
from handscroll.cache.snapkv import SnapKVCache
from handscroll.cache.tova import TovaCache
from handscroll.cache.window import WindowCache

KINDS: tuple[type[Cache], ...] = (
    FullCache,
    Int8Cache,
    Int4Cache,
    OffloadCache,
    RetrievalCache,
    WindowCache,
    SinksCache,
    SnapKVCache,
    H2OCache,
    TovaCache,
)
POLICIES: dict[str, type[Cache]] = {kind.policy: kind for kind in KINDS}
DEFAULT = FullCache.policy  # the cache where none is named, with which the others are compared
BLOCK = 64  # tokens: the smallest budget that a user may ask for


def kind_of(policy: str) -> type[Cache]:
    """The cache class of a policy; its options are ignored.

    Raises:
        ConfigError: there is no such policy.
    """
    name = policy.partition(":")[0]
    if name not in POLICIES:
        raise ConfigError(f"unknown cache policy '{name}': {nearest(name, POLICIES)}")
    return POLICIES[name]


def cache_of(policy: str) -> Callable[..., Cache]:
    """The cache class of a policy, with its options.

    Raises:
        ConfigError: there is no such policy or option, an option is given twice, or its value is not allowed.
    """
    kind, rest = kind_of(policy), policy.partition(":")[2]
    given = [_option(kind, part) for part in rest.split(",")] if rest else []
    options = dict(given)
    if len(options) < len(given):
        names = [name for name, _ in given]
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"'{policy}': the option '{twice}' is given more than once; give it once")
    if options.get("budget", BLOCK) < BLOCK:
        raise ConfigError(f"'{policy}': the budget is below one block of {BLOCK} tokens; give at least {BLOCK}")
    kind(0, **options)  # checks the options now, before the cache is needed
    return partial(kind, **options) if options else kind


def listed(*attributes: str) -> str:
    """The policies that have all of these attributes, as a message names them: "'full' or 'int8'"."""
    return " or ".join(f"'{name}'" for name, kind in POLICIES.items() if all(getattr(kind, one) for one in attributes))


def footprint(policy: str, config: Any, itemsize: int, device: str = "cpu") -> Footprint:
    """Bytes of a policy's cache for a model's configuration; `itemsize` is that of the model's dtype, and `device` says
    whether it is on a "cpu" or on "cuda".

    Raises:
        ConfigError: as `cache_of`; or the model keeps a state instead of keys.
    """
    if config.spec.recurrent:
        if policy != DEFAULT:
            raise ConfigError(
                f"family '{config.family}' keeps a state of constant size: no cache policy applies to it; leave "
                f"'{policy}' out"
            )
        return Footprint(each=0, fixed=config.spec.cache_bytes(1, itemsize))
    made = cache_of(policy)(config.layers, windows=config.spec.windows)
    return made.footprint(config.kv_heads, config.head_size, itemsize, device)


def _option(kind: type[Cache], text: str) -> tuple[str, Any]:
    key, given, value = text.partition("=")
    if key not in kind.options or not given:
        hint = nearest(key, kind.options) if kind.options else "it has none"
        raise ConfigError(f"unknown option '{text}' of the cache policy '{kind.policy}' (option=value): {hint}")
    if next(field for field in fields(kind) if field.name == key).type is str:
        return key, value
    try:
        return key, int(value)
    except ValueError:
        raise ConfigError(f"option '{text}' of the cache policy '{kind.policy}': give a whole number") from None
