"""Extension methods: each turns a model's positions into those of a longer context, one candidate or several.

A method is a row of `METHODS` and a function `(positions, head_size, to) -> candidates`. A candidate is data
(new positions, or how a learned table goes on), so that trying one costs no copy of the weights.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from handscroll.base.errors import ConfigError, nearest
from handscroll.extend.learned import LEARNED
from handscroll.models.model import Model
from handscroll.models.positions import OWN, Positions
from handscroll.nn.scaling.ntk import ntk_base
from handscroll.nn.scaling.table import scaling_from


@dataclass(frozen=True)
class Candidate:
    """One way to lengthen: `positions` for rotary models, `slopes` (what ALiBi's are divided by) for biased ones,
    `relative` (changes of a T5's configuration), none of these for a learned table; `detail` names its dials.

    `exact`: a text of at most so many tokens, in a request declared no longer, gives the very logits of before.
    """

    method: str
    detail: str
    positions: Positions | None = None
    slopes: float | None = None
    relative: dict[str, Any] | None = None
    exact: int = 0

    @property
    def name(self) -> str:
        return f"{self.method} ({self.detail})" if self.detail else self.method


Make = Callable[[Positions, int, int], list[Candidate]]


def as_it_is(positions: Positions, head_size: int, to: int) -> list[Candidate]:
    """Declare the longer context and change nothing: right for windowed models and for generous rope bases."""
    return [Candidate("none", "", _plain(positions.base, to), exact=to)]


def pi(positions: Positions, head_size: int, to: int) -> list[Candidate]:
    """Position interpolation (Chen et al. 2023): all frequencies divided by the factor."""
    return [_scaled("pi", "", positions, to, {"name": "pi", "factor": to / positions.trained})]


def ntk(positions: Positions, head_size: int, to: int) -> list[Candidate]:
    """NTK-aware (bloc97 2023): a larger base, so that the lowest frequency is divided by the factor.

    The base for exactly to / trained falls short near the end of the target, so larger factors are tried too.
    """
    made = []
    for stretch in (1.0, 1.25, 1.5, 2.0):
        factor = stretch * to / positions.trained
        base = ntk_base(positions.base, factor, head_size)
        made.append(Candidate("ntk", f"factor {factor:g}", _plain(base, to)))
    return made


def dynamic_ntk(positions: Positions, head_size: int, to: int) -> list[Candidate]:
    """Dynamic NTK (emozilla 2023): the base grows with the declared length; short requests stay exact."""
    fields = {"name": "dynamic-ntk", "factor": to / positions.trained, "original": positions.trained}
    return [_scaled("dynamic-ntk", "", positions, to, fields, exact=positions.trained)]


def yarn(positions: Positions, head_size: int, to: int) -> list[Candidate]:
    """YaRN (Peng et al. 2023), with its published ramp (32, 1) and with ramps that keep more dimensions.

    The paper found its ramp on 4K models; a short-context model has few dimensions that turn 32 times, and on
    babyllama-256 (beta 8, 0.35) gave 0.55 nats where (32, 1) gave 0.72 (2026-11, docs/log.md).
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


def llama3(positions: Positions, head_size: int, to: int) -> list[Candidate]:
    """The scaling of Llama 3.1: low frequencies divided, high ones kept, a smooth band between."""
    fields = {"name": "llama3", "factor": to / positions.trained, "original": positions.trained}
    return [_scaled("llama3", "", positions, to, fields | {"low_freq_factor": 1.0, "high_freq_factor": 4.0})]


def dynamic_yarn(positions: Positions, head_size: int, to: int) -> list[Candidate]:
    """YaRN with a factor by the declared length; short requests stay exact. Ramps as for `yarn`."""
    made, trained = [], positions.trained
    for fast, slow in ((32.0, 1.0), (16.0, 0.5), (8.0, 0.5), (8.0, 0.35)):
        for strength in (1.0, 0.5):
            fields = {"name": "dynamic-yarn", "factor": to / trained, "original": trained}
            fields |= {"beta_fast": fast, "beta_slow": slow, "sharpening": strength}
            detail = f"beta {fast:g}/{slow:g}, attention x{strength:g}"
            made.append(_scaled("dynamic-yarn", detail, positions, to, fields, exact=trained))
    return made


def self_extend(positions: Positions, head_size: int, to: int) -> list[Candidate]:
    """Self-Extend (Jin et al. 2024): exact within a window, groups beyond; three windows, two group sizes."""
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


def dual_chunk(positions: Positions, head_size: int, to: int) -> list[Candidate]:
    """Dual chunk attention (An et al. 2024) with chunks of 1/2, 3/4 (the paper's) and 7/8 of the trained length."""
    trained, made = positions.trained, []
    for share in (0.5, 0.75, 0.875):
        fields = {"name": "dual-chunk", "factor": to / trained, "original": trained}
        chunk = max(1, int(trained * share))
        fields |= {"chunk": chunk}
        made.append(_scaled("dual-chunk", f"chunks of {chunk}", positions, to, fields, exact=chunk))
    return made


def longrope(positions: Positions, head_size: int, to: int) -> list[Candidate]:
    """LongRoPE (Ding et al. 2024) with given factors; see `longrope_with`."""
    raise ConfigError(
        "method 'longrope' needs its factors: give --factors FILE, a JSON object with 'long_factor' and "
        f"'short_factor', {head_size // 2} numbers each"
    )


def longrope_with(factors: dict[str, Sequence[float]], positions: Positions, head_size: int, to: int) -> Candidate:
    """LongRoPE from `long_factor` and `short_factor` (head_size / 2 numbers each).

    Raises:
        ConfigError: other keys, or lists of another length.
    """
    wrong = set(factors) ^ {"long_factor", "short_factor"}
    if wrong:
        raise ConfigError(f"factors: {sorted(wrong)[0]!r}: give exactly 'long_factor' and 'short_factor'")
    for key, values in factors.items():
        if not isinstance(values, list) or len(values) != head_size // 2:
            raise ConfigError(f"factors: '{key}' must be a list of {head_size // 2} numbers (one a rotated pair)")
    fields = {"name": "longrope", "factor": to / positions.trained, "original": positions.trained}
    return _scaled("longrope", "given factors", positions, to, fields | dict(factors))


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
BIASED = {"none": "ALiBi's slopes as they are", "slopes": "ALiBi's slopes divided by the factor, or by less"}
RELATIVE = {
    "none": "the learned relative bias as it is",
    "divide": "distances divided by the factor before they are sorted into buckets",
    "reach": "buckets up to a distance as many times longer; those that hold one distance stay",
}


# How a model tells positions (`models/sizes.py: Told`), in words, and the methods for that. Others are not lengthened.
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "rotary": ("rotary positions", METHODS),
    "learned": ("learned positions", LEARNED),
    "slopes": ("ALiBi", BIASED),
    "buckets": ("a learned relative bias", RELATIVE),
}


def only_ours(config: Any) -> bool:
    """Whether no other library can read a checkpoint of this configuration; it is written so that they refuse it."""
    positions = getattr(config, "positions", None)
    return (positions is not None and positions.scaling.name in OWN) or getattr(config, "factor", 1.0) != 1.0


def candidates(
    model: Model, method: str, to: int, factors: dict[str, Any] | None = None, first: Any = None
) -> list[Candidate]:
    """The candidates of `method` for lengthening `model` to `to` tokens.

    "all": of every method; "auto": of every method whose result other libraries can read too. `first` is the
    configuration that the model was trained with (`extend/origin.py`), its own unless it was lengthened before.

    Raises:
        ConfigError: an unknown method, one that does not fit the family, or a target not above the trained length.
    """
    config = model.config
    first = config if first is None else first
    if config.told not in WAYS:
        raise ConfigError(f"family '{config.family}' {config.unlengthened}")
    if to <= config.context:
        raise ConfigError(
            f"--to {to} is not longer than the context of this checkpoint ({config.context} tokens"
            + (f", trained to {config.trained}" if config.trained != config.context else "")
            + "); give a larger number"
        )
    kind, table = WAYS[config.told]
    if method not in ("auto", "all", *table):
        raise ConfigError(f"unknown method '{method}' for {kind}: {nearest(str(method), ['auto', 'all', *table])}")
    if factors is not None and method != "longrope":
        raise ConfigError(f"--factors go with --method longrope, not with '{method}'")
    names = list(table) if method in ("auto", "all") else [method]
    if table is LEARNED:
        most = config.context**2
        if method == "hierarchical" and to > most:
            raise ConfigError(
                f"method 'hierarchical' makes at most {config.context:,} x {config.context:,} = {most:,} positions of "
                f"a table of {config.context:,}, not {to:,}; take another method, or a smaller --to"
            )
        names = [name for name in names if name != "hierarchical" or to <= most]
        kept = config.context  # rows, by all but one
        return [Candidate(name, "", exact=0 if name == "interpolate" else kept) for name in names]
    if table is BIASED:
        made = [entry for name in names for entry in _slopes(config, first, name, to)]
        readable = method == "auto" and not only_ours(config)
        return [entry for entry in made if not readable or entry.slopes == 1.0]
    if table is RELATIVE:
        return [_relative(config, first, name, to) for name in names]
    if factors is not None:
        return [longrope_with(factors, first.positions, config.rotated_size, to)]
    moved = first.positions.base != config.positions.base
    return _rotary(first.positions, config.rotated_size, method, to, "ntk" if moved else first.positions.scaling.name)


def apply(model: Model, candidate: Candidate, to: int, trained: int = 0) -> None:
    """Make `model` the lengthened one, in place: a new frozen configuration, or a longer position table.

    `trained` is the length that it was trained to; 0: as its configuration has it.
    """
    trained = trained or model.config.trained
    if candidate.relative is not None:
        changed = {**candidate.relative, "context": to, "original": trained}
        model.config = model.config.model_copy(update=changed)
        return
    if candidate.slopes is not None:
        changed = {"factor": candidate.slopes, "context": to, "original": trained}
        model.config = model.config.model_copy(update=changed)
        return
    if candidate.positions is not None:
        model.config = model.config.model_copy(update={"positions": candidate.positions})
        return
    table = model.get_parameter("position_embedding.weight")
    unused = getattr(model.config, "offset", 0)  # rows before the first position (RoBERTa)
    rows = table.detach()
    longer = torch.cat([rows[:unused], LEARNED[candidate.method](rows[unused:], to)])
    embedding = torch.nn.Embedding.from_pretrained(longer, freeze=False)
    model.set_submodule("position_embedding", embedding)
    model.config = model.config.model_copy(update={"context": to, "original": trained})


def _slopes(config: Any, first: Any, method: str, to: int) -> list[Candidate]:
    """Al-Khateeb et al. 2023: slopes divided by to / trained; by parts of it too, since ALiBi runs on by itself."""
    if method == "none":
        return [Candidate("none", "", slopes=config.factor, exact=to)]
    factor = first.factor * to / first.trained
    found = sorted({max(1.0, share * factor) for share in (0.25, 0.5, 1.0)} - {config.factor, 1.0})
    return [Candidate("slopes", f"factor {each:g}", slopes=each) for each in found]


def _relative(config: Any, first: Any, method: str, to: int) -> Candidate:
    """Chen et al. 2023's interpolation carried over to buckets, or only their logarithmic part stretched.

    Both end where the buckets of training would, stretched once; what is stretched already is counted in.
    """
    last = first.reach * first.factor * to / first.trained  # the distance from which on nothing changes
    if method == "divide":
        factor = max(1.0, last / config.reach)
        return Candidate(method, f"factor {factor:g}", relative={"factor": factor})
    if method == "reach":
        far = max(config.reach, math.ceil(last / config.factor))
        alone = int(config.factor * (config.buckets // 4))  # distances that keep their buckets on both sides
        return Candidate(method, f"buckets up to {far:,} tokens", relative={"reach": far}, exact=alone)
    return Candidate(method, "", relative={}, exact=to)


def _rotary(positions: Positions, head_size: int, method: str, to: int, current: str) -> list[Candidate]:
    """Fresh scalings start from unscaled frequencies; a checkpoint scaled by `current` already keeps that method."""
    if current != "none":
        if method not in ("auto", "all", current):
            raise ConfigError(
                f"the checkpoint is already scaled by '{current}'; it can only be lengthened by the same method "
                f"(--method {current} or auto)"
            )
        if current in ("ntk", "self-extend", "dual-chunk"):  # they start from the trained frequencies again
            scaling = positions.scaling
            kept = getattr(scaling, "window", getattr(scaling, "chunk", 0))  # tokens that were exact
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


def _larger(positions: Positions, factor: float) -> dict[str, Any]:
    """The fields of the same scaling by a larger factor; a chosen strength of YaRN's attention stays."""
    fields = positions.scaling.model_dump() | {"factor": factor}
    override = fields.pop("attention_override", None)
    if override is not None and positions.scaling.name == "yarn" and positions.scaling.factor > 1.0:
        strength = (override - 1.0) / math.log(positions.scaling.factor)
        fields["attention_override"] = round(1.0 + strength * math.log(factor), 4)
    return fields


def _plain(base: float, to: int) -> Positions:
    return Positions.parse({"base": base, "scaling": {"name": "none"}, "context": to, "trained": to}, "extend")


def _scaled(
    method: str, detail: str, positions: Positions, to: int, fields: dict[str, Any], exact: int = 0
) -> Candidate:
    values = {"base": positions.base, "scaling": fields, "context": to, "trained": positions.trained}
    new = Positions.parse(values | {"scaling": scaling_from(fields, method)}, method)
    return Candidate(method, detail, new, exact=exact)


def _try(make):
    """A candidate that its own formula refuses for this model (no ramp, say) is no candidate."""
    try:
        return make()
    except ConfigError:
        return None
