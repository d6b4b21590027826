"""Methods that lengthen rotary positions: functions `(positions, rotated numbers of a head, to) -> candidates`."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from handscroll.base.errors import ConfigError
from handscroll.nn.positions.candidate import Candidate
from handscroll.nn.scaling.ntk import ntk_base
from handscroll.nn.scaling.table import OWN, scaling_from

if TYPE_CHECKING:
    from handscroll.nn.positions.rotary import Rotary

Make = Callable[["Rotary", int, int], list[Candidate]]


def as_it_is(positions: "Rotary", head_size: int, to: int) -> list[Candidate]:
    """Declare the longer context and change nothing: right for windowed models and for generous rope bases."""
    return [Candidate("none", "", {"positions": _plain(positions, to)}, exact=to)]


def pi(positions: "Rotary", head_size: int, to: int) -> list[Candidate]:
    """Position interpolation (Chen et al. 2023): all frequencies divided by the factor."""
    return [_scaled("pi", "", positions, to, {"name": "pi", "factor": to / positions.trained})]


def ntk(positions: "Rotary", head_size: int, to: int) -> list[Candidate]:
    """NTK-aware (bloc97 2023): a larger base, so that the lowest frequency is divided by the factor.

    The base for exactly to / trained falls short near the end of the target, so larger factors are tried too.
    """
    made = []
    for stretch in (1.0, 1.25, 1.5, 2.0):
        factor = stretch * to / positions.trained
        base = ntk_base(positions.base, factor, head_size)
        made.append(Candidate("ntk", f"factor {factor:g}", {"positions": _plain(positions, to, base)}))
    return made


def dynamic_ntk(positions: "Rotary", head_size: int, to: int) -> list[Candidate]:
    """Dynamic NTK (emozilla 2023): the base grows with the declared length; short requests stay exact."""
    fields = {"name": "dynamic-ntk", "factor": to / positions.trained, "original": positions.trained}
    return [_scaled("dynamic-ntk", "", positions, to, fields, exact=positions.trained)]


def yarn(positions: "Rotary", head_size: int, to: int) -> list[Candidate]:
    """YaRN (Peng et al. 2023), with its published ramp (32, 1) and with ramps that keep more dimensions.

    The paper found its ramp on 4K models. In a model with a short context, few dimensions rotate 32 times: on
    babyllama-256 the ramp (8, 0.35) gave 0.55 nats where (32, 1) gave 0.72 (2026-11, docs/log.md).
    """
    factor = to / positions.trained
    made = []
    for fast, slow in ((32.0, 1.0), (32.0, 0.5), (16.0, 0.5), (16.0, 0.35), (8.0, 0.5), (8.0, 0.35), (8.0, 0.25)):
        for strength in (1.0, 0.5):
            published = (fast, slow, strength) == (32.0, 1.0, 1.0)
            fields: dict[str, Any] = {"name": "yarn", "factor": factor, "original": positions.trained}
            if not published:
                temperature = 1.0 + strength * 0.1 * torch.log(torch.tensor(factor)).item()
                fields |= {"beta_fast": fast, "beta_slow": slow, "truncate": False}
                fields |= {"attention_override": round(temperature, 4)}
            detail = f"beta {fast:g}/{slow:g}, attention x{strength:g}" if not published else "beta 32/1"
            candidate = _try(lambda f=fields, d=detail: _scaled("yarn", d, positions, to, f))
            made += [] if candidate is None else [candidate]
    if not made:
        raise ConfigError("YaRN has no ramp for this rope base and context; choose another method")
    return made


def llama3(positions: "Rotary", head_size: int, to: int) -> list[Candidate]:
    """The scaling of Llama 3.1: low frequencies are divided, high ones kept, and those between are blended."""
    fields = {"name": "llama3", "factor": to / positions.trained, "original": positions.trained}
    return [_scaled("llama3", "", positions, to, fields | {"low_freq_factor": 1.0, "high_freq_factor": 4.0})]


def dynamic_yarn(positions: "Rotary", head_size: int, to: int) -> list[Candidate]:
    """YaRN with a factor that depends on the declared length; short requests stay exact. Ramps as for `yarn`."""
    made, trained = [], positions.trained
    for fast, slow in ((32.0, 1.0), (16.0, 0.5), (8.0, 0.5), (8.0, 0.35)):
        for strength in (1.0, 0.5):
            fields = {"name": "dynamic-yarn", "factor": to / trained, "original": trained}
            fields |= {"beta_fast": fast, "beta_slow": slow, "sharpening": strength}
            detail = f"beta {fast:g}/{slow:g}, attention x{strength:g}"
            made.append(_scaled("dynamic-yarn", detail, positions, to, fields, exact=trained))
    return made


def self_extend(positions: "Rotary", head_size: int, to: int) -> list[Candidate]:
    """Self-Extend (Jin et al. 2024): exact within a window, groups beyond it; three windows and two group sizes."""
    trained, made = positions.trained, []
    for share in (0.25, 0.5, 0.75):
        window = max(1, int(trained * share))
        least = math.ceil((to - window) / (trained - window))
        for group in (least, math.ceil(1.5 * least)):
            fields = {"name": "self-extend", "factor": to / trained, "original": trained}
            fields |= {"window": window, "group": group}
            detail = f"window {window}, groups of {group}"
            made.append(_scaled("self-extend", detail, positions, to, fields, exact=window))
    return made


def dual_chunk(positions: "Rotary", head_size: int, to: int) -> list[Candidate]:
    """Dual chunk attention (An et al. 2024) with chunks of 1/2, 3/4 (the paper's) and 7/8 of the trained length."""
    trained, made = positions.trained, []
    for share in (0.5, 0.75, 0.875):
        fields = {"name": "dual-chunk", "factor": to / trained, "original": trained}
        chunk = max(1, int(trained * share))
        fields |= {"chunk": chunk}
        made.append(_scaled("dual-chunk", f"chunks of {chunk}", positions, to, fields, exact=chunk))
    return made


def longrope(positions: "Rotary", head_size: int, to: int) -> list[Candidate]:
    """LongRoPE (Ding et al. 2024) with given factors; see `longrope_with`."""
    raise ConfigError(
        "method 'longrope' needs its factors: search them (--search), or give --factors FILE, a JSON object with "
        f"'long_factor' and 'short_factor', {head_size // 2} numbers each"
    )


def longrope_with(factors: dict[str, Any], positions: "Rotary", head_size: int, to: int) -> Candidate:
    """LongRoPE from `long_factor` and `short_factor` (head_size / 2 numbers each).

    `attention_factor`, if given, replaces the published one.

    Raises:
        ConfigError: other keys, or lists of another length.
    """
    lists = {key: values for key, values in factors.items() if key != "attention_factor"}
    wrong = set(lists) ^ {"long_factor", "short_factor"}
    if wrong:
        raise ConfigError(
            f"factors: {sorted(wrong)[0]!r}: give exactly 'long_factor' and 'short_factor', and 'attention_factor' if "
            "it is not the published one"
        )
    for key, values in lists.items():
        if not isinstance(values, list) or len(values) != head_size // 2:
            raise ConfigError(f"factors: '{key}' must be a list of {head_size // 2} numbers (one a rotated pair)")
    fields = {"name": "longrope", "factor": to / positions.trained, "original": positions.trained} | lists
    attention = factors.get("attention_factor")
    if attention is not None:
        fields["attention_override"] = attention
    exact = positions.trained if attention == 1.0 and all(value == 1.0 for value in lists["short_factor"]) else 0
    return _scaled("longrope", "given factors", positions, to, fields, exact=exact)


METHODS: dict[str, Make] = {
    "none": as_it_is,
    "pi": pi,
    "ntk": ntk,
    "dynamic-ntk": dynamic_ntk,
    "yarn": yarn,
    "llama3": llama3,
    "longrope": longrope,
    "dynamic-yarn": dynamic_yarn,
    "self-extend": self_extend,
    "dual-chunk": dual_chunk,
}


def rotary_candidates(positions: "Rotary", head_size: int, method: str, to: int, current: str) -> list[Candidate]:
    """Candidates for a model without scaling, or for one that `current` scales already and that keeps this method."""
    if current != "none":
        if method not in ("auto", "all", current):
            raise ConfigError(
                f"the checkpoint is already scaled by '{current}'; it can only be lengthened by the same method "
                f"(--method {current} or auto)"
            )
        if current in ("ntk", "self-extend", "dual-chunk"):  # these always start from the trained frequencies
            scaling = positions.scaling
            kept = getattr(scaling, "window", getattr(scaling, "chunk", 0))  # tokens that were exact before
            return [replace(one, exact=min(one.exact, kept)) for one in METHODS[current](positions, head_size, to)]
        exact = positions.trained if current.startswith("dynamic") else 0
        fields = _larger(positions, to / positions.trained)
        return [_scaled(current, "larger factor", positions, to, fields, exact=exact)]
    if method not in ("auto", "all"):
        return METHODS[method](positions, head_size, to)
    made: list[Candidate] = []
    for name, make in METHODS.items():
        if name != "longrope" and (method == "all" or name not in OWN):
            made += _try(lambda make=make: make(positions, head_size, to)) or []
    return made


def _larger(positions: "Rotary", factor: float) -> dict[str, Any]:
    """The fields of the same scaling with a larger factor; a chosen strength of YaRN's attention stays."""
    fields = positions.scaling.model_dump() | {"factor": factor}
    override = fields.pop("attention_override", None)
    if override is not None and positions.scaling.name == "yarn" and positions.scaling.factor > 1.0:
        strength = (override - 1.0) / math.log(positions.scaling.factor)
        fields["attention_override"] = round(1.0 + strength * math.log(factor), 4)
    return fields


def _plain(positions: "Rotary", to: int, base: float = 0.0) -> "Rotary":
    values = {"base": base or positions.base, "scaling": {"name": "none"}, "context": to, "trained": to}
    return positions.parse(values, "extend")


def _scaled(
    method: str, detail: str, positions: "Rotary", to: int, fields: dict[str, Any], exact: int = 0
) -> Candidate:
    values = {"base": positions.base, "scaling": fields, "context": to, "trained": positions.trained}
    new = positions.parse(values | {"scaling": scaling_from(fields, method)}, method)
    return Candidate(method, detail, {"positions": new}, exact=exact)


def _try(make):
    """Call `make`, and drop the candidate if its own formula refuses this model (it has no ramp, for example)."""
    try:
        return make()
    except ConfigError:
        return None
