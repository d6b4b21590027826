"""The cache policies by name. Adding one: a file beside this, a line here."""

from handscroll.base.errors import ConfigError, nearest
from handscroll.generate.policies.h2o import H2OCache
from handscroll.generate.policies.int8 import Int8Cache
from handscroll.generate.policies.sinks import SinksCache
from handscroll.generate.policies.snapkv import SnapKVCache
from handscroll.generate.policies.tova import TovaCache
from handscroll.generate.policies.window import WindowCache
from handscroll.nn.cache import Cache

POLICIES: dict[str, type[Cache]] = {
    "full": Cache,
    "int8": Int8Cache,
    "window": WindowCache,
    "sinks": SinksCache,
    "snapkv": SnapKVCache,
    "h2o": H2OCache,
    "tova": TovaCache,
}
EXACT = ("full",)  # the others say that they are approximate


def cache_of(name: str) -> type[Cache]:
    """The cache class of a policy.

    Raises:
        ConfigError: there is no such policy.
    """
    if name not in POLICIES:
        raise ConfigError(f"unknown cache policy '{name}': {nearest(name, POLICIES)}")
    return POLICIES[name]


def new_cache(policy: str, layers: int, capacity: int = 0, budget: int | None = None) -> Cache:
    """A cache under `policy` with room reserved for `capacity` tokens, of which at most `budget` stay.

    Raises:
        ConfigError: no such policy; a budget for one that has none; none, or too small a one, for one that evicts.
    """
    kind = cache_of(policy)
    if kind.budgeted:
        return kind(layers, capacity=capacity, budget=budget)  # pyright: ignore[reportCallIssue]
    if budget is not None:
        evicting = ", ".join(name for name, other in POLICIES.items() if other.budgeted)
        raise ConfigError(f"the cache policy '{policy}' holds every token; a budget of tokens is for {evicting}")
    return kind(layers, capacity=capacity)
