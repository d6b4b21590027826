"""Writes models as GGUF files that llama.cpp reads. The library `gguf` writes the container."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from handscroll.base.errors import ConfigError, nearest
from handscroll.base.gguf import SUFFIX
from handscroll.base.runs import write_file
from handscroll.kernels.formats import FORMATS, Format
from handscroll.models.foreign import Entry
from handscroll.models.gguf.load import side_of
from handscroll.models.model import Model
from handscroll.models.sentence_folder import Sentences
from handscroll.models.table import family
from handscroll.models.unpack import pack
from handscroll.nn.finite import check_weights
from handscroll.nn.quantised import quantised

TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2}  # general.file_type
ENDS = ("token_embd.weight", "output.weight")  # Q8_0 when the rest is Q4_0: an error here affects every logit
WHOLE = ("position_embd", "token_types", "_norm", "attn_rel_b", "rope_", "ffn_gate_inp")  # small tables stay float32
QUANTISATION = 2  # general.quantization_version of the written layouts


def save_gguf(
    model: Model,
    tokens: dict[str, Any],
    path: Path,
    kind: str,
    about: dict[str, Any],
    recipe: Sentences | None = None,
) -> Path:
    """Write one GGUF file. `tokens` are the keys of the tokenizer, `about` records how the model was made, and `recipe`
    is that of a sentence encoder.

    `kind` is the format of the matrices. Norms, biases and small tables are always float32, and matrices that do not
    fit blocks of the format are float16.

    Raises:
        ConfigError: the format is unknown, llama.cpp does not support the family or a setting, or numbers exceed
            float16.
    """
    if quantised(model):
        raise ConfigError("the weights were rounded when the model was loaded: load it with weights='float'")
    check_weights(model)  # in blocks of whole numbers a number that is none would look like any other
    if kind not in TYPES:
        raise ConfigError(f"unknown type of weights '{kind}': {nearest(kind, TYPES)}")
    if path.suffix != SUFFIX:
        raise ConfigError(f"{path} does not end in {SUFFIX}; give a file name with this ending")
    foreign = family(model.config.family).write(model.config)
    side = side_of(family(foreign["model_type"]), path)  # a lengthened model may have another type than its family
    written = side.write(model.config, foreign)
    keys = {name: foreign[theirs] for name, theirs in side.keys.items() if foreign.get(theirs) is not None}
    metadata = {f"{side.architecture}.{name}": value for name, value in (keys | written.keys).items()}
    metadata |= {"general.file_type": FILE_TYPES[kind], "general.quantization_version": QUANTISATION, **tokens}
    if recipe is not None:
        metadata |= recipe.metadata(side.architecture, model.config.width)
    if about:
        metadata["handscroll.provenance"] = json.dumps(about, ensure_ascii=False)
    state = model.state_dict()
    own = {name: torch.tensor(numbers, dtype=torch.float32) for name, numbers in written.tensors.items()}
    tensors = _Tensors(side.entries(model.config), state, own, kind)
    write_file(path, lambda draft: _write(draft, side.architecture, metadata, tensors))
    return path


class _Tensors:
    """The tensors of a file, made one after the other."""

    def __init__(self, entries: list[Entry], state: dict[str, Tensor], own: dict[str, Tensor], kind: str):
        self.entries, self.state, self.own, self.kind = entries, state, own, kind

    def __iter__(self) -> Iterator[tuple[str, Tensor, Format]]:
        for name, tensor in self.own.items():
            yield name, tensor, FORMATS["F32"]
        for entry in self.entries:
            tensor = pack(entry, self.state)
            yield entry.theirs, tensor, self.format(entry.theirs, tensor)

    def format(self, name: str, tensor: Tensor) -> Format:
        if tensor.dim() < 2 or any(part in name for part in WHOLE):
            return FORMATS["F32"]
        wanted = FORMATS["Q8_0" if self.kind == "q4_0" and name in ENDS else TYPES[self.kind]]
        return wanted if tensor.shape[-1] % wanted.block == 0 else FORMATS["F16"]


def _write(path: Path, architecture: str, metadata: dict[str, Any], tensors: _Tensors) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        _add(writer, key, value)
    for name, tensor, format in tensors:
        shape = (*tensor.shape[:-1], format.row_bytes(tensor.shape[-1]))
        kind = gguf.GGMLQuantizationType(format.ggml)
        writer.add_tensor_info(name, shape, np.dtype(np.uint8), torch.Size(shape).numel(), kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor, format in tensors:
            writer.write_tensor_data(_bytes(name, tensor, format))
    finally:
        writer.close()


def _bytes(name: str, tensor: Tensor, format: Format) -> Any:
    if format.name == "F16" and float(tensor.abs().max()) > torch.finfo(torch.float16).max:
        raise ConfigError(f"tensor '{name}' has numbers beyond float16: export it as bf16, f32 or q8_0")
    rows = tensor.reshape(-1, tensor.shape[-1])
    return format.quantise(rows).numpy()


def _add(writer: Any, key: str, value: Any) -> None:
    """Add a key with the type that llama.cpp expects."""
    import gguf

    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        (writer.add_uint32 if value >= 0 else writer.add_int32)(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, bytes):
        writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY, sub_type=gguf.GGUFValueType.UINT8)
    else:
        writer.add_array(key, value)
