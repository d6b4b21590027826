"""Loads models from GGUF files. The file is mapped: a tensor that keeps its format is a view of it, never a copy."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.base.gguf import GGUF, Stored, read_gguf
from handscroll.kernels.formats import BY_GGML, FORMATS, Format
from handscroll.kernels.rows import NUMBERS
from handscroll.models.foreign import Family
from handscroll.models.gguf.side import GGUFSide, Header
from handscroll.models.model import Decoder
from handscroll.models.table import ARCHITECTURES, family
from handscroll.models.unpack import empty_model, mapped, unpack
from handscroll.nn.quantised import give, keep, round_one
from handscroll.text.gguf import check_keys, ends, roles

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def side_of(kind: Family, where: Any) -> GGUFSide:
    """The GGUF description of a family.

    Raises:
        ConfigError: the family has no GGUF files.
    """
    if kind.gguf is None:
        raise ConfigError(f"{where}: llama.cpp does not know the family '{kind.name}', so it has no GGUF files")
    return kind.gguf


def read_header(path: Path) -> tuple[Family, Any, Header]:
    """The family, its configuration, and the header, which records the keys that were read.

    Raises:
        ConfigError: an architecture, a key or a setting is unknown.
    """
    header = Header(read_gguf(path))
    kind = family(ARCHITECTURES.get(header.file.architecture, header.file.architecture))
    side = side_of(kind, path)
    foreign = header.foreign(side, kind.name) | _tokens(header.file)
    config = kind.parse(foreign)
    return kind, config if kind.settle is None else kind.settle(config, lambda name: None), header


def ignored_keys(path: Path) -> list[str]:
    """Keys of the metadata that change nothing here."""
    _, _, header = read_header(path)
    return header.ignored()


def _tokens(file: GGUF) -> dict[str, Any]:
    """The tokens that begin and end a text, from the tokenizer."""
    if "tokenizer.ggml.tokens" not in file.metadata:
        raise CheckpointError(f"{file.path} has no tokenizer")
    check_keys(file.metadata, str(file.path))
    found = ends(file.metadata)
    return {"bos_token_id": roles(file.metadata)["bos"], "eos_token_id": found or None}


def load_gguf(
    path: Path, dtype: torch.dtype | None, device: str | torch.device, as_stored: bool, rounded: str = ""
) -> Decoder:
    """The model of a GGUF file.

    `dtype` is the dtype of the computation (None: see `stored_dtype`). `as_stored` keeps quantised matrices as they
    are; otherwise they are dequantised, or `rounded` to a format of `PROJECTIONS`, one after the other.

    Raises:
        CheckpointError: tensors are missing, unexpected, truncated or of the wrong shape; the message names them.
        ConfigError: see `read_header`.
    """
    kind, config, header = read_header(path)
    file = header.file
    dtype = dtype or stored_dtype(file, device)
    model = empty_model(kind, config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    reader = Mapped(file)
    state: dict[str, Tensor] = {}
    for entry in side_of(kind, path).entries(config):
        stored = reader.take(entry.theirs)
        format = _format(stored)
        quantised = format.name not in FLOATS
        raw = reader.bytes(stored, format) if quantised else reader.numbers(stored)
        for name, part in unpack(entry, raw, stored.shape, shapes, path):
            if quantised and as_stored and keep(model, name, format, part.to(device), dtype):
                continue
            numbers = NUMBERS(format, part, dtype) if quantised else part
            numbers = (numbers - entry.plus if entry.plus else numbers).to(device=device, dtype=dtype)
            if not round_one(model, name, numbers, rounded):
                state[name] = numbers
    reader.check_rest(header.tensors)
    give(model, state)
    return model.eval()


def stored_dtype(file: GGUF, device: str | torch.device) -> torch.dtype:
    """The dtype of most bytes of a file; for quantised weights, the dtype of the computation."""
    return settled(float_dtype(file) or QUANTISED, device)


def float_dtype(file: GGUF) -> torch.dtype | None:
    """The dtype of most bytes of a file; None where they are quantised."""
    sizes: Counter[str] = Counter()
    for stored in file.tensors.values():
        sizes[_format(stored).name] += _format(stored).row_bytes(stored.shape[-1]) * _rows(stored)
    (name, _), *_ = sizes.most_common(1) or [("F32", 0)]
    return FLOATS.get(name)


QUANTISED = torch.float32  # default dtype of the computation with quantised weights


def settled(dtype: torch.dtype, device: str | torch.device) -> torch.dtype:
    """The dtype of the computation: float32 for float16 on a CPU, which lacks float16; otherwise unchanged."""
    half = dtype is torch.float16 and torch.device(device).type == "cpu"
    return torch.float32 if half else dtype


def sizes_of(file: GGUF) -> tuple[int, str, int]:
    """(numbers, formats, bytes) of the tensors."""
    numbers, total, formats = 0, 0, set()
    for stored in file.tensors.values():
        format = _format(stored)
        numbers += torch.Size(stored.shape).numel()
        total += format.row_bytes(stored.shape[-1]) * _rows(stored)
        formats.add(format.name)
    return numbers, "/".join(name for name in FORMATS if name in formats), total


def _format(stored: Stored) -> Format:
    if stored.kind not in BY_GGML:
        raise ConfigError(
            f"{stored.path}: tensor '{stored.name}' has the ggml type {stored.kind}, which is not supported; "
            f"known types are {', '.join(format.name for format in BY_GGML.values())}"
        )
    return BY_GGML[stored.kind]


def _rows(stored: Stored) -> int:
    return torch.Size(stored.shape[:-1]).numel()


class Mapped:
    """The tensors of a GGUF file, as views of it."""

    def __init__(self, file: GGUF):
        self.file = file
        self.taken: set[str] = set()
        self.files = {path: mapped(path) for path in file.files}

    def take(self, name: str) -> Stored:
        if name not in self.file.tensors:
            raise CheckpointError(f"{self.file.path} has no tensor '{name}', which its metadata requires")
        self.taken.add(name)
        return self.file.tensors[name]

    def bytes(self, stored: Stored, format: Format) -> Tensor:
        """The raw uint8 rows (rows, bytes of a row)."""
        rows, row = _rows(stored), format.row_bytes(stored.shape[-1])
        whole = self.files[stored.path]
        if stored.offset + rows * row > len(whole):
            raise CheckpointError(f"{stored.path} is cut short within '{stored.name}'; fetch or write it again")
        return whole[stored.offset : stored.offset + rows * row].view(rows, row)

    def numbers(self, stored: Stored) -> Tensor:
        """The values of a float tensor in its shape."""
        format = _format(stored)
        return self.bytes(stored, format).view(FLOATS[format.name]).view(stored.shape)

    def check_rest(self, also: set[str]) -> None:
        """Refuse tensors that were not read.

        Raises:
            CheckpointError: the file holds such tensors.
        """
        rest: Iterator[str] = (name for name in self.file.tensors if name not in self.taken and name not in also)
        names = sorted(rest)
        if names:
            raise CheckpointError(
                f"{self.file.path} holds {len(names)} tensors that its metadata does not explain: "
                + ", ".join(names[:4])
            )
