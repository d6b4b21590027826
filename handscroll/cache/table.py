"""The cache policies by name. Adding one: a file beside this, a line here.

A policy may be given with options: "retrieval:blocks=16,measure=0", "h2o:budget=512". They are the fields of its class.
"""

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

from handscroll.base.errors import ConfigError, nearest
from handscroll.base.workload import Footprint
from handscroll.cache.full import Cache
from handscroll.cache.h2o import H2OCache
from handscroll.cache.int4 import Int4Cache
from handscroll.cache.int8 import Int8Cache
from handscroll.cache.offload import OffloadCache
from handscroll.cache.retrieval import RetrievalCache
from handscroll.cache.sinks import SinksCache
from handscroll.cache.snapkv import SnapKVCache
from handscroll.cache.tova import TovaCache
from handscroll.cache.window import WindowCache

POLICIES: dict[str, type[Cache]] = {
    "full": Cache,
    "int8": Int8Cache,
    "int4": Int4Cache,
    "offload": OffloadCache,
    "retrieval": RetrievalCache,
    "window": WindowCache,
    "sinks": SinksCache,
    "snapkv": SnapKVCache,
    "h2o": H2OCache,
    "tova": TovaCache,
}
EXACT = ("full", "offload")  # the others say that they are approximate
SAVED = ("full", "int8")  # what a reading may be kept in
EVICTING = ("window", "sinks", "snapkv", "h2o", "tova")  # hold `budget` tokens, forget the rest
SCORED = ("snapkv", "h2o", "tova")  # ask for the attention on keys, which needs one rotation
REWINDABLE = ("full", "int8")  # `trim` and `branch` leave what the kept tokens alone would have left
OPTIONS: dict[str, tuple[str, ...]] = {
    "offload": ("block", "recent", "place", "folder"),
    "retrieval": ("blocks", "block", "recent", "measure", "place", "folder"),
    **dict.fromkeys(EVICTING, ("budget",)),
}
BLOCK = 64  # tokens: the smallest budget that anybody may ask for


def cache_of(policy: str) -> Callable[..., Cache]:
    """The cache class of a policy, with its options.

    Raises:
        ConfigError: there is no such policy or option, or an option has no such value.
    """
    name, _, rest = policy.partition(":")
    if name not in POLICIES:
        raise ConfigError(f"unknown cache policy '{name}': {nearest(name, POLICIES)}")
    kind = POLICIES[name]
    options = dict(_option(name, part) for part in rest.split(",")) if rest else {}
    if options.get("budget", BLOCK) < BLOCK:
        raise ConfigError(f"'{policy}': the budget is below one block of {BLOCK} tokens; give at least {BLOCK}")
    kind(0, **options)  # refuses here what it would refuse later
    return partial(kind, **options) if options else kind


def footprint(policy: str, config: Any, itemsize: int) -> Footprint:
    """Bytes of a policy's cache for a model's configuration; `itemsize` is that of the model's dtype.

    Raises:
        ConfigError: as `cache_of`, or a policy for a model that keeps a state instead of keys.
    """
    if config.spec.recurrent:
        if policy != "full":
            raise ConfigError(
                f"family '{config.family}' keeps a state of constant size: no cache policy applies to it, leave "
                f"'{policy}' out"
            )
        return Footprint(each=0, fixed=config.state_bytes(itemsize))
    return cache_of(policy)(config.layers).footprint(config.kv_heads, config.head_size, itemsize)


def exact(policy: str) -> bool:
    """Whether the policy gives the model's own results."""
    return policy.partition(":")[0] in EXACT


def _option(name: str, text: str) -> tuple[str, Any]:
    key, given, value = text.partition("=")
    allowed = OPTIONS.get(name, ())
    if key not in allowed or not given:
        hint = nearest(key, allowed) if allowed else "it has none"
        raise ConfigError(f"unknown option '{text}' of the cache policy '{name}' (option=value): {hint}")
    if next(field for field in fields(POLICIES[name]) if field.name == key).type is str:
        return key, value
    try:
        return key, int(value)
    except ValueError:
        raise ConfigError(f"option '{text}' of the cache policy '{name}': give a whole number") from None
