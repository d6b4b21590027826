"""The NTK-aware change of base. It is no `Scaling`, so that the result is exported as a plain rotary embedding."""

from handscroll.base.errors import ConfigError


def ntk_base(base: float, factor: float, head_size: int) -> float:
    """base' = base * s^(d / (d - 2)).

    The highest frequency (i = 0) stays 1 and the lowest (i = d/2 - 1) is divided by exactly s, because
    base'^(-(d-2)/d) = base^(-(d-2)/d) / s. Use it with `NoScaling`.
    Source: bloc97 2023, "NTK-Aware Scaled RoPE" (r/LocalLLaMA); Peng et al. 2023, arXiv:2309.00071, section 3.1.
    Limits: the dimensions in between are stretched by less than s, so the last part of the longer context is outside
    the trained range; a factor somewhat above (new length / old length) is usual.

    Raises:
        ConfigError: factor below 1 or not finite, head size odd or below 4.
    """
    if not 1.0 <= factor < float("inf"):
        raise ConfigError(f"NTK factor is {factor}; it must be a finite number of at least 1")
    return base * factor ** ntk_exponent(head_size)


def ntk_exponent(head_size: int) -> float:
    """d / (d - 2).

    Raises:
        ConfigError: a head of fewer than two pairs has no lowest frequency to stretch.
    """
    if head_size < 4 or head_size % 2:
        raise ConfigError(f"NTK scaling needs an even head size of at least 4; this model has {head_size}")
    return head_size / (head_size - 2)
