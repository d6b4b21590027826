"""Folders of rounded models as they are saved here: the bytes of each matrix in its number format.

No other library reads them (`quant_method` "handscroll" says so). Tensors have our own names, because the matrices of a
projection that others store fused may have several formats.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.kernels.formats import Format, format_of
from handscroll.models.packed.table import quantisation_of
from handscroll.nn.quantised import Quantised

METHOD = "handscroll"


def written(model: nn.Module, foreign: list[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of a model with quantised matrices, and its `quantization_config`.

    `foreign` are the names of its tensors in other folders, by which families tell which heads there are.
    """
    formats = {name: one.format.name for name, one in model.named_modules() if isinstance(one, Quantised)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return tensors, {"quant_method": METHOD, "formats": formats, "tensors": foreign}


def formats_of(foreign: Mapping[str, Any]) -> dict[str, Format] | None:
    """The format of each module of such a folder; None if `config.json` describes another one.

    Raises:
        ConfigError: a format is unknown.
    """
    settings = quantisation_of(foreign)
    if settings.get("quant_method") != METHOD:
        return None
    formats = settings.get("formats")
    if not isinstance(formats, Mapping):
        raise ConfigError(f"config.json: quantization_config.formats is {formats!r}; expected a table of modules")
    return {name: format_of(str(format)) for name, format in formats.items()}


def names_of(foreign: Mapping[str, Any]) -> set[str] | None:
    """The names that the tensors of such a folder have elsewhere; None if `config.json` describes another one."""
    settings = quantisation_of(foreign)
    names = settings.get("tensors")
    if settings.get("quant_method") != METHOD:
        return None
    return {str(name) for name in names} if isinstance(names, list) else set()


def read(
    model: nn.Module, formats: Mapping[str, Format], take: Callable[[str], Tensor]
) -> "list[tuple[str, Tensor, Format | None]]":
    """The tensors of a model without numbers: name, numbers or rows of bytes, and the format of the latter.

    Raises:
        CheckpointError: a tensor has another shape than the configuration requires.
    """
    found: list[tuple[str, Tensor, Format | None]] = []
    for name, parameter in model.named_parameters():
        path, _, part = name.rpartition(".")
        format = formats.get(path) if part == "weight" else None
        tensor = take(f"{path}.raw" if format else name)
        wanted = tuple(parameter.shape)
        if format is not None:
            wanted = (wanted[0], format.row_bytes(wanted[1]))
        if tuple(tensor.shape) != wanted or (format is not None) != (tensor.dtype is torch.uint8):
            raise CheckpointError(f"'{name}' is stored as {tensor.dtype} {tuple(tensor.shape)}, expected {wanted}")
        found.append((name, tensor, format))
    if unknown := formats.keys() - {name.removesuffix(".weight") for name, _ in model.named_parameters()}:
        raise CheckpointError(f"config.json gives a format to '{min(unknown)}', which this model does not have")
    return found
