"""Position settings of foreign `config.json` files, reading and writing.

Two forms are in use: `rope_theta` with `rope_scaling` (transformers 4), and `rope_parameters` with `rope_theta` inside
(transformers 5). Either form is read, or both if they agree; nothing is guessed.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from handscroll.base.errors import ConfigError, nearest
from handscroll.base.tables import resolve
from handscroll.models.keys import LARGEST, LONGEST, harmless, short
from handscroll.nn.positions.rotary import Rotary, agree, contradiction, stretched
from handscroll.nn.scaling.base import Scaling
from handscroll.nn.scaling.table import SCALINGS

# Every top-level key that this module reads or writes. Remove them before merging what `write_positions` returns,
# because a stale key of the other form would contradict it.
POSITION_KEYS = (
    "max_position_embeddings",
    "max_sequence_length",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
)


class _Form(NamedTuple):
    """A foreign rope_type: the name of our scaling, and {foreign key: our field}."""

    scaling: str
    fields: dict[str, str]


_STRETCH = {"factor": "factor", "original_max_position_embeddings": "original"}
_FORMS = {
    "default": _Form("none", {}),
    "linear": _Form("pi", _STRETCH),
    "dynamic": _Form("dynamic-ntk", _STRETCH),
    "yarn": _Form(
        "yarn",
        _STRETCH
        | {key: key for key in ("beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim")}
        | {"attention_factor": "attention_override"},
    ),
    "llama3": _Form("llama3", _STRETCH | {key: key for key in ("low_freq_factor", "high_freq_factor")}),
    "longrope": _Form(
        "longrope",
        _STRETCH | {key: key for key in ("short_factor", "long_factor")} | {"attention_factor": "attention_override"},
    ),
    "dynamic-yarn": _Form("dynamic-yarn", _STRETCH | {key: key for key in ("beta_fast", "beta_slow", "sharpening")}),
    "self-extend": _Form("self-extend", _STRETCH | {"window": "window", "group_size": "group"}),
    "dual-chunk": _Form("dual-chunk", _STRETCH | {"chunk_size": "chunk"}),
}
_ALIASES = {"su": "longrope"}  # the name in the first release of Phi-3
_COMMON = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
_PLAIN = {"rope_type": "default"}
# Keys that the reference library never reads. Some servers multiply the attention factor by `attn_factor`, which is not
# `attention_factor` (that one replaces it).
_IGNORED = {"yarn": ("attn_factor",)}
_STATED = ("yarn", "llama3", "longrope")  # without an original length, the length stated is the original one
_BY_FACTOR = ("yarn", "dynamic-yarn")  # the recipe reaches factor x original, whatever shorter length is stated


def unscaled(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of a new rotary model, with `context` (and `base`) replaced by unscaled positions of that length."""
    values = dict(sizes)
    context = values.pop("context", None)
    if context is not None:
        base = values.pop("base", 10_000.0)
        values["positions"] = {"base": base, "scaling": {"name": "none"}, "context": context, "trained": context}
    return values


def rotated_size(config: Mapping[str, Any], head_size: int, default: float = 1.0) -> int:
    """The number of rotated values of each head: partial_rotary_factor, or the default of the family, times the head
    size.

    Raises:
        ConfigError: the factor is outside (0, 1] or gives an odd number, or two factors differ.
    """
    forms = {key: _rope_dict(config, key) for key in ("rope_scaling", "rope_parameters")}
    factor = _agreed("partial_rotary_factor", config, forms)
    factor = default if factor is None else factor
    size = int(head_size * factor)
    if not 0.0 < factor <= 1.0 or size < 2 or size % 2:
        raise ConfigError(
            f"config.json: partial_rotary_factor {factor} of heads of {head_size} rotates {size} numbers; "
            "an even number from 2 up to the head's is needed"
        )
    return size


def read_positions(
    config: Mapping[str, Any], head_size: int, default_base: float = 10000.0, partial: bool = False
) -> Rotary:
    """The position settings of a parsed `config.json` whose heads have `head_size` rotated values.

    `default_base` is the rope_theta of the family if the file has none (10000 for Llama, Mistral and Qwen). With
    `partial` the family rotates parts of heads, and `head_size` is the result of `rotated_size`. For `linear`, a file
    without original_max_position_embeddings is taken to state the extended length: published files differ on this, and
    this reading never claims more tokens than the file does. `notes` tells what a file does not say by itself.

    Raises:
        ConfigError: a setting is unknown or contradictory; see the messages. What the reference library takes for
            granted is taken here too (the original length of yarn, if only one length is stated); what it ignores is
            refused, except `attn_factor` beside yarn, bookkeeping, and settings that are off.
    """
    forms = {key: _rope_dict(config, key) for key in ("rope_scaling", "rope_parameters")}
    rope_dicts = {key: values for key, values in forms.items() if values}
    factor = _agreed("partial_rotary_factor", config, rope_dicts)
    if not partial and factor not in (None, 1):
        raise ConfigError(f"partial_rotary_factor is {factor}; this family rotates whole heads (1.0)")
    base = _agreed("rope_theta", config, rope_dicts)
    base = float(default_base if base is None else base)
    read = {
        key: _read_one(key, values, config, base) for key, values in (rope_dicts or {"rope_scaling": _PLAIN}).items()
    }
    positions, *others = read.values()
    if any(other != positions for other in others):
        raise ConfigError(
            "config.json has rope_scaling and rope_parameters, and they differ: "
            f"{forms['rope_scaling']} and {forms['rope_parameters']}; remove the wrong one"
        )
    for length in (positions.trained, positions.context):  # checks factor lists and ramps against the head size
        positions.scaling.inverse_frequencies(head_size, base, length)
    return positions


def of_layer_type(config: Mapping[str, Any], kind: str, kinds: Collection[str]) -> dict[str, Any]:
    """The configuration for layers of one `kind`, when rope tables may have a table for each of `kinds`.

    transformers 5 writes such `rope_parameters` for models whose layers differ in their rope (Gemma 3).

    Raises:
        ConfigError: there is a table for an unknown kind of layer, or there are settings beside such tables.
    """
    found = dict(config)
    for key in ("rope_scaling", "rope_parameters"):
        values = config.get(key)
        if not isinstance(values, dict) or not any(isinstance(value, dict) for value in values.values()):
            continue
        wrong = [name for name, value in values.items() if name not in kinds or not isinstance(value, dict | None)]
        if wrong:
            raise ConfigError(
                f"config.json: {key} has a table for each kind of layer and beside them {wrong[0]!r}, which is "
                f"not a kind: {nearest(wrong[0], kinds)}"
            )
        found[key] = values.get(kind)
    return found


def notes(config: Mapping[str, Any], positions: Rotary) -> list[str]:
    """What was concluded from the position settings of a `config.json` without being stated there, for `info`."""
    tables = [table for key in ("rope_scaling", "rope_parameters") if (table := config.get(key))]
    tables += [inner for table in tables for inner in table.values() if isinstance(inner, dict)]
    inner = {key: value for table in tables for key, value in table.items()}
    stated, found = config.get("max_position_embeddings"), list[str]()
    if stated is None:
        found.append("max_position_embeddings is absent: that of the published family")
    elif positions.context != stated:
        found.append(
            f"{stated:,} tokens are stated; the factor {positions.scaling.factor:g} of {positions.trained:,} reaches "
            f"{positions.context:,}"
        )
    if "attn_factor" in inner:
        found.append("attn_factor is not used, as in the reference library; some servers multiply scores by it")
    if bool(inner.get("mscale")) != bool(inner.get("mscale_all_dim")):
        found.append("of mscale and mscale_all_dim only one is given, and none is used, as in the reference library")
    return found


def write_positions(positions: Rotary) -> dict[str, Any]:
    """The keys of `config.json` for these positions, as `transformers` 4 and 5 and `read_positions` read them.

    Remove `POSITION_KEYS` before merging the result. The older form is written: version 4 reads only that one, version
    5 converts it while loading and prefers it to `rope_parameters`, and two forms in one file could diverge.
    """
    scaling = positions.scaling
    rope_type, form = next((name, form) for name, form in _FORMS.items() if form.scaling == scaling.name)
    # Dynamic scaling counts from max_position_embeddings itself, in both versions.
    stated = positions.trained if rope_type == "dynamic" else positions.context
    written: dict[str, Any] = {"max_position_embeddings": stated, "rope_theta": positions.base, "rope_scaling": None}
    if rope_type != "default":
        written["rope_scaling"] = {"rope_type": rope_type} | _foreign_fields(scaling, form)
    if rope_type in ("dynamic", "linear"):
        written["rope_scaling"].pop("original_max_position_embeddings", None)  # version 5 warns about it
    if rope_type in ("linear", "longrope") or (rope_type == "default" and positions.trained != positions.context):
        # Phi-3 and version 4 read longrope's original length from the top level. `transformers` ignores it for the
        # other two; it is written so that the trained length is not lost.
        written["original_max_position_embeddings"] = positions.trained
    return written


def _foreign_fields(scaling: Scaling, form: _Form) -> dict[str, Any]:
    """The required fields, and the optional ones that differ from the default, under their foreign names."""
    values: dict[str, Any] = {}
    for key, field in form.fields.items():
        info = type(scaling).model_fields.get(field)
        value = getattr(scaling, field)
        if info is not None and (info.is_required() or value != info.default):
            values[key] = list(value) if isinstance(value, tuple) else value
    return values


def _rope_dict(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The rope table under `key`, with one spelling of its type and without nulls; empty if absent."""
    values = config.get(key)
    if values is None or values == {}:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"config.json: {key} is {values!r}; expected a table")
    nested = sorted(name for name, value in values.items() if isinstance(value, dict))
    if nested:
        raise ConfigError(
            f"config.json: {key} has its own settings per layer type ({', '.join(nested)}); "
            "only one setting for all layers is supported"
        )
    # The reference library treats a null as an absent key, except for `truncate`, where it means false.
    present = {name: value for name, value in values.items() if value is not None or name == "truncate"}
    types = {_ALIASES.get(str(present[name]), str(present[name])) for name in ("rope_type", "type") if name in present}
    if len(types) > 1:
        raise ConfigError(
            f"config.json: {key} has rope_type and type with different values: {', '.join(sorted(types))}"
        )
    if not types and set(present) - {"rope_theta", "partial_rotary_factor"}:
        raise ConfigError(f"config.json: {key} has no rope_type; {nearest('', _FORMS)}")
    present.pop("type", None)
    return present | {"rope_type": types.pop() if types else "default"}


def _agreed(name: str, config: Mapping[str, Any], rope_dicts: Mapping[str, Mapping[str, Any]]) -> int | float | None:
    """The number called `name`, from any of the places; None if absent."""
    places = {"the top level": config, **rope_dicts}
    found = {place: values[name] for place, values in places.items() if values.get(name) is not None}
    for place, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LARGEST:
            raise ConfigError(f"config.json: {name} at {place} is {short(value)}; expected a number up to {LARGEST:g}")
    if len(set(found.values())) > 1:
        stated = ", ".join(f"{value} at {place}" for place, value in found.items())
        raise ConfigError(f"config.json: {name} is given more than once: {stated}; keep one")
    return next(iter(found.values()), None)


def _read_one(where: str, values: Mapping[str, Any], config: Mapping[str, Any], base: float) -> Rotary:
    """`Rotary` from one normalised rope table and the top-level lengths."""
    rope_type = values["rope_type"]
    if rope_type not in _FORMS:
        raise ConfigError(f"config.json: {where} has the unknown rope_type {rope_type!r}: {nearest(rope_type, _FORMS)}")
    form = _FORMS[rope_type]
    allowed = (*form.fields, *_COMMON, *_IGNORED.get(rope_type, ()))
    for key, value in values.items():
        if key not in allowed and not harmless(key, value, config):
            raise ConfigError(f"config.json: unknown key {key!r} in {where} ({rope_type}): {nearest(key, allowed)}")
    stated = _length("max_position_embeddings", config.get("max_position_embeddings"))
    original = _agreed("original_max_position_embeddings", config, {where: values})
    if original is not None:
        original = _length("original_max_position_embeddings", original)
    elif rope_type in _STATED:
        original = stated
    elif rope_type == "linear" and config.get("max_sequence_length") == stated * values.get("factor", 0):
        original = stated  # Vicuna and LongChat state the trained length, and the lengthened one beside it
    scaling = _scaling(where, values, stated, original)
    context, trained = _lengths(rope_type, scaling.factor, stated, original)
    found = {"base": base, "scaling": scaling, "context": context, "trained": trained}
    return Rotary.parse(found, "config.json")


def _scaling(where: str, values: Mapping[str, Any], stated: int, original: int | None) -> Scaling:
    """The scaling of a rope table, including the fields that foreign files keep at the top level."""
    rope_type = values["rope_type"]
    form = _FORMS[rope_type]
    owner = resolve(SCALINGS, form.scaling, "scaling")
    foreign = {field: key for key, field in form.fields.items() if field in owner.model_fields}
    fields = {field: values[key] for field, key in foreign.items() if key in values}
    if "original" in foreign:
        fields["original"] = stated if rope_type == "dynamic" else original
    if rope_type in ("longrope", "yarn") and "factor" not in fields and original is not None:
        fields["factor"] = stated / original  # Phi-3 omits it; the reference library also uses the ratio
    if not (fields.get("mscale") and fields.get("mscale_all_dim")):  # so the reference library: both, or neither
        fields = {field: value for field, value in fields.items() if field not in ("mscale", "mscale_all_dim")}
    missing = [
        key for field, key in foreign.items() if owner.model_fields[field].is_required() and fields.get(field) is None
    ]
    if missing:
        raise ConfigError(f"config.json: {where} (rope_type {rope_type}) needs {' and '.join(missing)}")
    return owner.parse(fields, f"config.json: {where}")


def _length(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LONGEST:
        raise ConfigError(
            f"config.json: {name} is {short(value)}; expected a positive whole number of tokens, up to {LONGEST:,}"
        )
    return value


def _lengths(rope_type: str, factor: float, stated: int, original: int | None) -> tuple[int, int]:
    """(context, trained) from max_position_embeddings and the original length, if given.

    If the factor is the ratio of both, a file may state the extended length, or the original length with a factor to
    apply to it (published model cards switch scaling on in this way). Qwen3 states 40,960 tokens, which are 32,768 and
    room for an answer, beside a factor of 4 for the 32,768: its recipe reaches 131,072.
    """
    if rope_type == "default":
        context, trained = stated, original or stated
    elif rope_type == "dynamic":
        if original not in (None, stated):
            raise ConfigError(
                f"config.json: original_max_position_embeddings is {original} and max_position_embeddings {stated}; "
                "dynamic scaling counts from max_position_embeddings, so that one must be the original length"
            )
        context, trained = stretched(stated, factor), stated
    elif rope_type == "llama3":  # its factor divides frequencies and is not a ratio of lengths
        context, trained = stated, original or stated
    elif original is None:
        context, trained = stated, max(1, round(stated / factor))
    elif stated == original or (rope_type in _BY_FACTOR and original < stated < stretched(original, factor)):
        context, trained = stretched(original, factor), original
    elif agree(original, factor, stated):
        context, trained = stated, original
    else:
        raise ConfigError("config.json: " + contradiction(factor, original, stated))
    if context < trained:
        raise ConfigError(
            f"config.json: max_position_embeddings ({context}) is below original_max_position_embeddings ({trained})"
        )
    return context, trained
