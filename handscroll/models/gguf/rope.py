"""Rotary positions of GGUF files: converted to keys of `config.json`, which `models/positions.py` checks, and back."""

import json
import math
from typing import Any

import torch

from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.models.foreign import Foreign
from handscroll.models.gguf.side import Header, Written
from handscroll.models.positions import read_positions, write_positions
from handscroll.nn.positions.rotary import Rotary
from handscroll.nn.scaling.llama3 import Llama3
from handscroll.nn.scaling.table import scaling_from

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}  # the values of every published model
TRAINED = 8192  # the training length of the first such models
OWN = "rope.handscroll"  # the rope_scaling of a `config.json`, where the file can hold only what follows from it
FACTORS, ATTENTION = "rope_freqs.weight", "rope.scaling.attn_factor"
CLOSE = 1e-4  # relative; stored in float32


def read_rope(header: Header, rotated: int, tensors: bool = False) -> Foreign:
    """Read `rope_theta` and `rope_scaling`.

    With `tensors`, models of the architecture may have their own factors in tensors.

    Raises:
        ConfigError: the scaling is unknown.
    """
    listed = "longrope" if tensors and header.has("rope_factors_long.weight") else "none"  # Phi-3's files name no type
    base, kind = header.get("rope.freq_base", 10000.0), header.get("rope.scaling.type", listed)
    header.only("rope.dimension_count", rotated)
    factor, original = header.get("rope.scaling.factor"), header.get("rope.scaling.original_context_length")
    found: Foreign = {"rope_theta": base, "rope_scaling": None}
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise ConfigError(f"{header.file.path}: rope.scaling.type '{kind}' is not one of none, linear, yarn, longrope")
    own = header.get(OWN) if tensors else None
    if own is not None:
        return found | {"rope_scaling": _own(header, own, rotated, base)}
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    if kind in ("none", "linear"):
        header.only(ATTENTION, 1.0)
    if original is not None:
        found["original_max_position_embeddings"] = original
    if kind == "linear":
        found["rope_scaling"] = scaling
    if kind == "yarn":
        found["rope_scaling"] = scaling | _yarn(header, factor)
    if kind == "longrope":
        found["rope_scaling"] = scaling | _longrope(header)
    factors = header.vector(FACTORS) if tensors and kind == "none" else None
    if factors is not None and any(number != 1.0 for number in factors):
        found["rope_scaling"] = _llama3(header, factors, base, original)
    return found


def _own(header: Header, text: str, rotated: int, base: float) -> Foreign:
    """The scaling of a file that this package wrote; its factors and its attention factor must follow from it."""
    config = {"rope_theta": base, "max_position_embeddings": header.need("context_length")}
    try:
        scaling = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{header.file.path}: the key {OWN} is not JSON ({error})") from None
    found = read_positions(config | {"rope_scaling": scaling}, rotated).scaling
    stored, made = header.vector(FACTORS) or [], _factors(found, rotated, base)
    attention = [header.get(ATTENTION, 1.0), found.attention_factor(None)]
    alike = len(stored) == len(made) and all(map(_close, [*stored, attention[0]], [*made, attention[1]]))
    if not alike:
        raise CheckpointError(f"{header.file.path}: its factors of rotary positions contradict its key {OWN}: {text}")
    return scaling


def _close(one: float, other: float) -> bool:
    return abs(one / other - 1) < CLOSE


def _yarn(header: Header, factor: float) -> dict[str, Any]:
    """llama.cpp multiplies the attention factor of YaRN by its own."""
    header.only("rope.scaling.yarn_ext_factor", 1.0)
    usual = {"beta_fast": 32.0, "beta_slow": 1.0}
    found = {name: header.get(f"rope.scaling.yarn_{name}", value) for name, value in usual.items()}
    own = header.get(ATTENTION, 1.0)
    if own != 1.0:
        found["attention_factor"] = own * (1.0 + 0.1 * math.log(factor))
    return found


def _longrope(header: Header) -> dict[str, Any]:
    long, short = (header.vector(f"rope_factors_{name}.weight") for name in ("long", "short"))
    if long is None or short is None:
        raise ConfigError(f"{header.file.path}: longrope needs the tensors rope_factors_long and rope_factors_short")
    found: dict[str, Any] = {"long_factor": long, "short_factor": short}
    own, context = header.get(ATTENTION), header.need("context_length")
    original = header.get("rope.scaling.original_context_length", context)
    usual = math.sqrt(1.0 + math.log(max(1.0, context / original)) / math.log(original))
    return found if own is None or abs(own - usual) < 1e-6 else found | {"attention_factor": own}


def _llama3(header: Header, factors: list[float], base: float, original: int | None) -> dict[str, Any]:
    """The scaling of Llama 3 for the factors of the file; it stores only factors, so published settings are tried."""
    largest = max(factors)
    fields = {"factor": largest, **LLAMA3}
    context = header.need("context_length")
    lengths = [original] if original else [TRAINED, max(1, round(context / largest))]
    for length in lengths:
        made = _factors(scaling_from({"name": "llama3", "original": length, **fields}), len(factors) * 2, base)
        if all(map(_close, made, factors)):
            return {"rope_type": "llama3", "original_max_position_embeddings": length, **fields}
    raise ConfigError(
        f"{header.file.path}: the factors of its tensor rope_freqs (up to {largest:g}) do not "
        "follow from any published scaling"
    )


def _factors(scaling: Any, rotated: int, base: float) -> list[float]:
    """The divisor of each frequency."""
    plain = base ** -(torch.arange(0, rotated, 2, dtype=torch.float64) / rotated)
    scaled = torch.as_tensor(scaling.inverse_frequencies(rotated, base, 0), dtype=torch.float64)
    return (plain / scaled).tolist()


def write_rope(positions: Rotary, rotated: int, tensors: bool = False) -> Written:
    """The keys and tensors of rotary positions.

    Raises:
        ConfigError: llama.cpp does not compute this scaling for this architecture.
    """
    scaling, base = positions.scaling, positions.base
    keys: dict[str, Any] = {"rope.freq_base": base, "rope.dimension_count": rotated}
    original = {"rope.scaling.original_context_length": positions.trained}
    if scaling.name == "none":
        return Written(keys if positions.trained == positions.context else keys | original, {})
    keys |= original
    if scaling.name == "pi":
        return Written(keys | {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}, {})
    if scaling.name == "yarn" and getattr(scaling, "truncate", True):
        own = scaling.attention_factor(positions.context) / (1.0 + 0.1 * math.log(scaling.factor))
        keys |= {"rope.scaling.type": "yarn", "rope.scaling.factor": scaling.factor}
        keys |= {f"rope.scaling.yarn_{name}": getattr(scaling, name) for name in ("beta_fast", "beta_slow")}
        return Written(keys if abs(own - 1.0) < 1e-6 else keys | {ATTENTION: own}, {})
    if scaling.name == "yarn" and tensors:  # a ramp of other bounds: as plain factors of the frequencies
        keys |= {ATTENTION: scaling.attention_factor(None), OWN: json.dumps(write_positions(positions)["rope_scaling"])}
        return Written(keys, {FACTORS: _factors(scaling, rotated, base)})
    if isinstance(scaling, Llama3) and tensors:
        if any(getattr(scaling, name) != usual for name, usual in LLAMA3.items()):
            raise ConfigError(
                "GGUF stores no settings of a llama3 scaling: only low_freq_factor 1 and "
                "high_freq_factor 4 can be written"
            )
        return Written(keys, {FACTORS: _factors(scaling, rotated, base)})
    if scaling.name == "longrope" and tensors:
        keys["rope.scaling.type"] = "longrope"  # without a factor: llama.cpp would divide the positions by it too
        keys[ATTENTION] = scaling.attention_factor(positions.context)
        lists = {name: list(getattr(scaling, f"{name}_factor")) for name in ("long", "short")}
        return Written(keys, {f"rope_factors_{name}.weight": factors for name, factors in lists.items()})
    raise ConfigError(
        f"llama.cpp does not compute the scaling '{scaling.name}' as this model has it: lengthen it with 'pi', 'ntk' "
        "or 'yarn' (beta 32/1), or save it as a folder"
    )
