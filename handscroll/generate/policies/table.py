"""The cache policies by name. Adding one: a file beside this, a line here."""

from handscroll.base.errors import ConfigError, nearest
from handscroll.generate.policies.int8 import Int8Cache
from handscroll.nn.cache import Cache

POLICIES: dict[str, type[Cache]] = {"full": Cache, "int8": Int8Cache}
EXACT = ("full",)  # the others say that they are approximate
REWINDABLE = ("full", "int8")  # `trim` and `branch` leave what the kept tokens alone would have left


def cache_of(name: str) -> type[Cache]:
    """The cache class of a policy.

    Raises:
        ConfigError: there is no such policy.
    """
    if name not in POLICIES:
        raise ConfigError(f"unknown cache policy '{name}': {nearest(name, POLICIES)}")
    return POLICIES[name]
