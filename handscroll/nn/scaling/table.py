"""The table of scalings. NTK-aware scaling is a change of base (`ntk.py`) and has no row."""

from typing import Any

from handscroll.base.named import named
from handscroll.nn.scaling.base import Scaling

SCALINGS = {
    "none": "handscroll.nn.scaling.none:NoScaling",
    "pi": "handscroll.nn.scaling.pi:PositionInterpolation",
    "dynamic-ntk": "handscroll.nn.scaling.dynamic:DynamicNTK",
    "yarn": "handscroll.nn.scaling.yarn:YaRN",
    "llama3": "handscroll.nn.scaling.llama3:Llama3",
    "dynamic-yarn": "handscroll.nn.scaling.dynamic_yarn:DynamicYaRN",
    "self-extend": "handscroll.nn.scaling.self_extend:SelfExtend",
    "dual-chunk": "handscroll.nn.scaling.dual_chunk:DualChunk",
    "longrope": "handscroll.nn.scaling.longrope:LongRoPE",
}
# Methods that no other library computes: other libraries do not know these names and refuse to load them.
OWN = frozenset({"dynamic-yarn", "self-extend", "dual-chunk"})


def scaling_from(values: Any, where: str = "scaling") -> Scaling:
    """A scaling from its record, such as {"name": "pi", "factor": 4.0}; a `Scaling` is returned as it is.

    Raises:
        ConfigError: the name is missing or unknown (the nearest valid one is given), or fields are wrong.
    """
    return named(Scaling, SCALINGS, values, "scaling", where, '{"name": "pi", "factor": 4.0}')
