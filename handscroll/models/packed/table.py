"""The quantisation methods of folders: `quantization_config` of `config.json` -> how a matrix is read.

To add a method, add a function to `layouts.py` and a line to `METHODS`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from handscroll.base.errors import ConfigError, nearest
from handscroll.models.packed import layouts
from handscroll.models.packed.layouts import Take
from handscroll.models.packed.numbers import Packed

QUANTISATION = ("quantization_config", "compression_config")  # keys of config.json
Scheme = Callable[[Take], Packed | None]

# What the matrices of a folder that is not read would need.
REFUSED = {
    "bitsandbytes": "packs weights for CUDA kernels in blocks that cross rows. Take the checkpoint that it was made of "
    "and round it here (--weights int8 or int4), or write it once with transformers: "
    "model.dequantize().save_pretrained(folder)",
    "mxfp4": "take a GGUF file of the model, or write it once with transformers: model.dequantize()",
}
OTHERS = "take the full-precision checkpoint (and --weights int8 or int4), a GGUF file, or a GPTQ or AWQ folder of it"


def quantisation_of(foreign: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the quantisation of a folder; empty if there is none.

    Raises:
        ConfigError: they are no table.
    """
    settings = next((foreign[key] for key in QUANTISATION if foreign.get(key)), {})
    if not isinstance(settings, Mapping):
        raise ConfigError(f"config.json: quantization_config is {settings!r}; expected a table")
    return settings


def scheme_of(foreign: Mapping[str, Any]) -> Scheme | None:
    """How the quantised matrices of a folder are read; None if it has none.

    Raises:
        ConfigError: the method is not read, or one of its settings changes the weights in a way that is not understood.
    """
    settings = quantisation_of(foreign)
    if not settings:
        return None
    method = settings.get("quant_method")
    if (method is None and settings.get("load_in_4bit")) or settings.get("load_in_8bit"):
        method = "bitsandbytes"
    method = str(method)
    if method in REFUSED:
        raise ConfigError(f"config.json: the weights are quantised by {method}, which is not read: {REFUSED[method]}")
    if method not in METHODS:
        known = nearest(method, METHODS)
        raise ConfigError(
            f"config.json: the weights are quantised by {method!r}, which is not read: {known}. Otherwise {OTHERS}"
        )
    return METHODS[method](settings)


def _gptq(settings: Mapping[str, Any]) -> Scheme:
    form = settings.get("checkpoint_format") or "gptq"
    _only("checkpoint_format", form, ("gptq", "gptq_v2"))
    return partial(layouts.gptq, version=2 if form == "gptq_v2" else 1)


def _awq(settings: Mapping[str, Any]) -> Scheme:
    _only("version", str(settings.get("version") or "gemm").lower(), ("gemm",))
    _only("bits", settings.get("bits", settings.get("w_bit", 4)), (4,))
    return layouts.awq


def _fp8(settings: Mapping[str, Any]) -> Scheme:
    _only("fmt", settings.get("fmt") or "e4m3", ("e4m3", "float8_e4m3fn"))
    return partial(layouts.float8, block=_block(settings.get("weight_block_size")))


def _compressed(settings: Mapping[str, Any]) -> Scheme:
    forms = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "dense")
    _only("format", settings.get("format") or "dense", forms)
    for key in ("transform_config", "kv_cache_scheme"):
        if settings.get(key):
            raise ConfigError(
                f"config.json: quantization_config.{key} = {settings[key]!r} changes more than weights, and is not "
                f"understood: {OTHERS}"
            )
    _only("sparsity_config.format", _table(settings.get("sparsity_config")).get("format") or "dense", ("dense",))
    groups = _table(settings.get("config_groups")).values()
    blocks = [_table(_table(group).get("weights")).get("block_structure") for group in groups]
    return partial(layouts.compressed, block=_block(next((one for one in blocks if one), None)))


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _block(value: Any) -> tuple[int, int] | None:
    """Rows and columns of a block of float8 weights; None: the shape of the scales tells."""
    if isinstance(value, str):  # "128x128"
        value = [int(part) if part.isdigit() else part for part in value.split("x")]
    if not value:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(type(one) is int and one > 0 for one in value):
        raise ConfigError(
            f"config.json: blocks of {value!r} are not understood; expected two sizes, such as [128, 128]"
        )
    return value[0], value[1]


def _only(key: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        names = ", ".join(map(str, allowed))
        raise ConfigError(
            f"config.json: quantization_config.{key} = {value!r} is not read (allowed: {names}): {OTHERS}"
        )


METHODS: dict[str, Callable[[Mapping[str, Any]], Scheme]] = {
    "gptq": _gptq,
    "awq": _awq,
    "fp8": _fp8,
    "compressed-tensors": _compressed,
}
