"""Rotary frequencies and attention factors in float64, from the settings of a `config.json` and nothing else.

This file repeats, on purpose, what `nn/scaling/` computes: a doctor that used the code of a runtime would share its
mistakes. The formulas are those of Su et al. 2021 (arXiv:2104.09864), Chen et al. 2023 (2306.15595, linear),
Peng et al. 2023 (2309.00071: YaRN, dynamic NTK), Dubey et al. 2024 (Llama 3.1) and Ding et al. 2024 (2402.13753).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from handscroll.doctor.finding import Cannot

Numbers = NDArray[np.float64]
USUAL = 10_000.0  # the base that a library takes where it finds none
# Settings whose frequencies depend on the length of the text.
BY_LENGTH = frozenset({"dynamic", "longrope", "dynamic-yarn"})
# Keys are rotated to places of their own, so no table of plain positions exists.
SEVERAL = frozenset({"self-extend", "dual-chunk"})


@dataclass(frozen=True)
class Rope:
    """The rotary settings of one kind of layers.

    `rotated` counts the rotated numbers of a head; `settings` is the rope table of the file, `stated` its
    max_position_embeddings, and `original` the trained length that it names (or `stated`).
    """

    base: float
    rotated: int
    kind: str = "default"
    settings: Mapping[str, Any] | None = None
    stated: int = 0
    original: int = 0

    @property
    def by_length(self) -> bool:
        return self.kind in BY_LENGTH

    @property
    def scale(self) -> float:
        """The factor of the scaling; 1 where there is none. Where the file names none, the ratio of its lengths."""
        given = self._get("factor")
        if given is None and self.kind != "default" and self.stated and self.original:
            return self.stated / self.original
        return 1.0 if given is None else float(given)

    @property
    def reach(self) -> int:
        """The length up to which the settings are meant to be used."""
        return (
            max(self.stated, math.floor(self.original * self.scale + 1e-6)) if self.kind != "default" else self.stated
        )

    def frequencies(self, length: int | None = None) -> Numbers:
        """Radians per token of each pair, float64 (rotated / 2,), for a text of `length` tokens.

        Raises:
            Cannot: the kind of scaling is not known here.
        """
        made = _KINDS.get(self.kind)
        if made is None:
            raise Cannot(f"the configuration has rope_type '{self.kind}', which the doctor does not know")
        return made(self, self._plain(self.base), length)

    def factor(self, length: int | None = None) -> float:
        """The factor of cosines and sines (scores get its square)."""
        given = self._get("attention_factor")
        if self.kind == "yarn":
            return _yarn_factor(self) if given is None else float(given)
        if self.kind == "longrope":
            if given is not None or self.scale <= 1.0:
                return 1.0 if given is None else float(given)
            return math.sqrt(1.0 + math.log(self.scale) / math.log(self.original))
        if self.kind == "dynamic-yarn":
            return 1.0 + 0.1 * float(self._get("sharpening", 1.0)) * math.log(_bucket(self, length))
        return 1.0

    def with_settings(self, **changes: Any) -> "Rope":
        """The same rope with other entries of its table."""
        return replace(self, settings={**(self.settings or {}), **changes})

    def _get(self, key: str, default: Any = None) -> Any:
        value = (self.settings or {}).get(key)
        return default if value is None else value

    def _plain(self, base: float) -> Numbers:
        return base ** (-np.arange(0, self.rotated, 2, dtype=np.float64) / self.rotated)


def _linear(rope: Rope, plain: Numbers, length: int | None) -> Numbers:
    return plain / rope.scale


def _dynamic(rope: Rope, plain: Numbers, length: int | None) -> Numbers:
    ratio = max(length or 0, rope.original) / rope.original
    grown = rope.base * (rope.scale * ratio - rope.scale + 1.0) ** (rope.rotated / (rope.rotated - 2))
    return rope._plain(grown)


def _ramped(rope: Rope, plain: Numbers, scale: float, truncate: bool) -> Numbers:
    """YaRN: pairs that turn often within the trained length stay, slow ones are divided by the scale."""

    def pair(turns: float) -> float:
        return rope.rotated * math.log(rope.original / (2 * math.pi * turns)) / (2 * math.log(rope.base))

    first, last = pair(float(rope._get("beta_fast", 32.0))), pair(float(rope._get("beta_slow", 1.0)))
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope.rotated - 1)
    steps = np.arange(rope.rotated // 2, dtype=np.float64)
    share = np.clip((steps - first) / (last - first if last != first else 0.001), 0.0, 1.0)
    return plain * (1.0 - share) + plain / scale * share


def _yarn(rope: Rope, plain: Numbers, length: int | None) -> Numbers:
    given = (rope.settings or {}).get("truncate", True)
    return _ramped(rope, plain, rope.scale, bool(given))


def _yarn_factor(rope: Rope) -> float:
    def sharper(weight: float) -> float:
        return 0.1 * weight * math.log(rope.scale) + 1.0 if rope.scale > 1.0 else 1.0

    one, all_of = rope._get("mscale"), rope._get("mscale_all_dim")
    return sharper(float(one)) / sharper(float(all_of)) if one and all_of else sharper(1.0)


def _llama3(rope: Rope, plain: Numbers, length: int | None) -> Numbers:
    low, high = float(rope._get("low_freq_factor", 1.0)), float(rope._get("high_freq_factor", 4.0))
    turns = rope.original * plain / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return plain * (kept + (1.0 - kept) / rope.scale)


def _longrope(rope: Rope, plain: Numbers, length: int | None) -> Numbers:
    factors = rope._get("long_factor" if (length or 0) > rope.original else "short_factor")
    if not isinstance(factors, list | tuple) or len(factors) != len(plain):
        raise Cannot(f"longrope needs {len(plain)} factors for a head, and the file has {len(factors or ())}")
    return plain / np.asarray(factors, dtype=np.float64)


def _bucket(rope: Rope, length: int | None) -> float:
    whole = rope.original
    while whole < (length or 1):
        whole *= 2
    return min(whole / rope.original, rope.scale)


def _dynamic_yarn(rope: Rope, plain: Numbers, length: int | None) -> Numbers:
    scale = _bucket(rope, length)
    return plain if scale == 1.0 else _ramped(rope, plain, scale, False)


def _unscaled(rope: Rope, plain: Numbers, length: int | None) -> Numbers:
    return plain


_KINDS: dict[str, Callable[[Rope, Numbers, int | None], Numbers]] = {
    "default": _unscaled,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
    "dynamic-yarn": _dynamic_yarn,
    "self-extend": _unscaled,
    "dual-chunk": _unscaled,
}


class Suspect(NamedTuple):
    """A known mistake: what a runtime that makes it would compute, and the sentence that names it."""

    says: str
    frequencies: Numbers


def suspects(rope: Rope, length: int | None) -> list[Suspect]:
    """What known mistakes would make of these settings, the most common first."""
    right, plain = rope.frequencies(length), rope._plain(rope.base)
    name = f"rope_type '{rope.kind}'"
    found = [
        Suspect(f"the scaling ({name}) is not applied: the frequencies are those without it", plain),
        Suspect(f"the scaling ({name}) is applied twice", right * right / plain),
        Suspect(
            f"rope_theta {rope.base:g} was lost: the base is {USUAL:g}",
            replace(rope, base=USUAL).frequencies(length),
        ),
        Suspect(
            f"rope_theta {rope.base:g} and the scaling were lost: the base is {USUAL:g}, unscaled", rope._plain(USUAL)
        ),
    ]
    if rope.kind != "default":
        found.append(
            Suspect(f"the scaling ({name}) is read as 'linear' with factor {rope.scale:g}", plain / rope.scale)
        )
        squared = rope.with_settings(factor=rope.scale**2)
        found.append(
            Suspect(f"the factor {rope.scale:g} is applied twice (as {rope.scale**2:g})", _tried(squared, length))
        )
    if rope.stated and rope.original and rope.kind not in ("default", "longrope"):
        taken = rope.stated / rope.original
        says = f"the factor is taken as max_position_embeddings / original = {taken:g} instead of {rope.scale:g}"
        found.append(Suspect(says, _tried(rope.with_settings(factor=taken), length)))
        moved = replace(rope, original=rope.stated)
        says = f"the trained length is taken as max_position_embeddings ({rope.stated:,}) instead of {rope.original:,}"
        found.append(Suspect(says, _tried(moved, length)))
    if rope.by_length and rope.kind != "dynamic":
        other = rope.original + 1 if (length or 0) <= rope.original else rope.original
        found.append(Suspect("the frequencies are those of another length of text", _tried(rope, other)))
    found += [Suspect(f"the frequencies were rounded to {name}", rounded(right)) for name, rounded in ROUNDED.items()]
    return found


def _tried(rope: Rope, length: int | None) -> Numbers:
    """Frequencies of settings that may be impossible; then no runtime has them."""
    with np.errstate(all="ignore"):
        try:
            return rope.frequencies(length)
        except (ValueError, ZeroDivisionError, OverflowError):
            return np.full(rope.rotated // 2, np.nan)


def _bfloat16(numbers: Numbers) -> Numbers:
    bits = numbers.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32).astype(np.float64)


ROUNDED: dict[str, Callable[[Numbers], Numbers]] = {
    "bfloat16": _bfloat16,
    "float16": lambda numbers: numbers.astype(np.float16).astype(np.float64),
}
