"""Reads and writes checkpoints: folders of safetensors (sharded or not), never pickle; reads GGUF files."""

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from handscroll.base.errors import CheckpointError, ConfigError, nearest
from handscroll.base.gguf import is_gguf, read_gguf
from handscroll.base.runs import write_file
from handscroll.kernels.formats import Format
from handscroll.kernels.rows import NUMBERS
from handscroll.models.classes import SUFFIXES
from handscroll.models.foreign import Entry, Family
from handscroll.models.gguf.load import float_dtype, load_gguf, read_header, settled, sizes_of
from handscroll.models.heads import part_of_head
from handscroll.models.model import Decoder, Model
from handscroll.models.packed import own
from handscroll.models.packed.numbers import Packed
from handscroll.models.packed.table import QUANTISATION, Scheme, quantisation_of, scheme_of
from handscroll.models.table import family
from handscroll.models.unpack import empty_model, mapped, pack, unpack
from handscroll.nn.quantised import give, keep, quantised, round_one

# Tensors beside quantised matrices that only rounded activations and caches need.
_SPARE = re.compile(r"\.((input|output|k|v|q)_(scale|zero_point)|input_global_scale)$")
# Buffers in old checkpoints that are recomputed from the configuration.
BUFFERS = re.compile(r"(rotary_emb\.inv_freq|\.(attn|attention)\.(masked_)?bias|embeddings\.position_ids)$")
PREFIXES = ("model.", "transformer.", "bert.", "roberta.", "distilbert.", "electra.", "gpt_neox.")
_log = logging.getLogger("handscroll.checkpoints")
PROVENANCE, PROVENANCE_KEY = "handscroll.json", "handscroll.provenance"
TASK = "task.json"  # the task that a model was tuned for
ADAPTER = "adapter_config.json"  # the configuration of an adapter folder of PEFT's form
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def is_adapter(path: Path) -> bool:
    """Whether a folder is an adapter and holds no model besides."""
    return (path / ADAPTER).is_file() and not any((path / name).exists() for name in (WHOLE, INDEX))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a checkpoint folder; an error names a missing or broken file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}; it is not a checkpoint folder") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # also of numbers with thousands of digits
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, expected an object")
    return value


def read_config(source: Path) -> tuple[Family, Any]:
    """The family and its configuration, from `config.json` or the metadata of a GGUF file."""
    if is_gguf(source):
        kind, config, _ = read_header(source)
        return kind, config
    foreign = read_json(source / "config.json")
    if "model_type" not in foreign:
        raise CheckpointError(f"{source / 'config.json'} has no 'model_type'")
    kind = family(foreign["model_type"])
    if own.formats_of(foreign) is not None or scheme_of(foreign) is not None:
        foreign = {key: value for key, value in foreign.items() if key not in QUANTISATION}
    return kind, kind.parse(foreign)


def settled_config(source: Path) -> tuple[Family, Any]:
    """As `read_config`, with what only the weights show (which heads there are)."""
    kind, config = read_config(source)
    if kind.settle is None or is_gguf(source):
        return kind, config
    with ExitStack() as stack:
        return kind, kind.settle(config, _looking(_Reader(source, stack)))


def _looking(reader: "_Reader") -> Callable[[str], Tensor | None]:
    """Finds a foreign tensor; in a folder of a rounded model, which has our names, only whether it was there."""
    names = own.names_of(read_json(reader.folder / "config.json"))
    there = torch.empty(0)
    return reader.look if names is None else lambda name: there if names & set(spellings(name)) else None


def load_model(
    source: Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    as_stored: bool = False,
    rounded: str = "",
) -> Decoder:
    """Build the model of a checkpoint folder or a GGUF file and read its weights.

    Files are mapped: a tensor stored in `dtype` (None: the dtype of most tensors) is a view of its file. `as_stored`
    keeps quantised matrices as they are; otherwise they are dequantised. `rounded` rounds projections and tables to a
    format of `PROJECTIONS` while they are read, so that the float model never exists as a whole.

    Raises:
        CheckpointError: tensors are missing, unexpected, truncated or of the wrong shape; the message names them.
        ConfigError: the device does not exist here.
    """
    check_device(device)
    if is_gguf(source):
        return load_gguf(source, dtype, device, as_stored, rounded)
    kind, config = read_config(source)
    state: dict[str, Tensor] = {}
    with ExitStack() as stack:
        reader = _Reader(source, stack)
        dtype = dtype or settled(reader.dtype, device)
        if kind.settle is not None:
            config = kind.settle(config, _looking(reader))
        model = empty_model(kind, config)
        for name, stored, format in _parts(reader, kind, model, dtype if not as_stored else None):
            part = stored.to(device).contiguous()
            if format is not None and as_stored and keep(model, name, format, part, dtype):
                continue
            numbers = part.to(dtype) if format is None else NUMBERS(format, part, dtype)
            if not round_one(model, name, numbers, rounded):
                state[name] = numbers
        copies = kind.copies(config)  # the copy of a matrix that was rounded cannot be compared
        reader.check_rest({theirs: state.get(ours) if ours else None for theirs, ours in copies.items()})
    give(model, state)
    return model.eval()


def _parts(
    reader: "_Reader", kind: Family, model: Decoder, dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor, Format | None]]:
    """All tensors of a model by our names: numbers, or rows of a quantised matrix and their format."""
    foreign = read_json(reader.folder / "config.json")
    if (formats := own.formats_of(foreign)) is not None:
        yield from own.read(model, formats, reader.take)
        return
    scheme = scheme_of(foreign)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for entry in kind.entries(model.config):
        stored, format, shape, entry = _stored(reader, entry, scheme, dtype)
        for name, part in unpack(entry, stored, shape, shapes, reader.folder):
            yield name, part, format


def _stored(
    reader: "_Reader", entry: Entry, scheme: Scheme | None, dtype: torch.dtype | None
) -> tuple[Tensor, Format | None, tuple[int, ...], Entry]:
    """A foreign tensor, or the rows of a quantised matrix and their format; its shape in numbers; its entry.

    With a `dtype` quantised matrices are read as numbers.
    """
    packed = None if scheme is None else reader.packed(entry, scheme)
    if packed is not None:
        entry = replace(entry, transposed=False)  # layouts of quantised matrices have rows of outputs
        kept = packed.raw() if dtype is None else None
        if kept is not None:
            return kept[1], kept[0], packed.shape, entry
        return packed.floats(dtype or torch.float32), None, packed.shape, entry
    stored = reader.take(entry.theirs, *entry.also)
    if not stored.is_floating_point():
        raise CheckpointError(
            f"{reader.folder}: tensor '{entry.theirs}' is {stored.dtype}, and config.json has no quantization_config "
            "that says how it is read"
        )
    return stored, None, tuple(stored.shape), entry


def loaded_dtype(source: Path, device: str | torch.device = "cpu") -> torch.dtype:
    """The default dtype of a loaded checkpoint."""
    return settled(written_dtype(source) or torch.float32, device)


def written_dtype(source: Path) -> torch.dtype | None:
    """The dtype of the numbers in the files of a checkpoint; None where they are quantised."""
    if is_gguf(source):
        return float_dtype(read_gguf(source))
    with ExitStack() as stack:
        return _Reader(source, stack).dtype


def check_device(device: str | torch.device) -> None:
    """Check a device name.

    Raises:
        ConfigError: it is neither the CPU nor a GPU that torch sees here.
    """
    name = str(device)
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise ConfigError(f"unknown device '{name}': {nearest(name, ('cpu', 'cuda'))}")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device '{name}': torch sees {torch.cuda.device_count()} GPUs here; take 'cpu', or a torch built for CUDA"
        )


def save_model(
    model: Model,
    folder: Path,
    shard_bytes: int = 4 << 30,
    pad: int | None = None,
    stored: torch.dtype | None = None,
) -> None:
    """Write `config.json` and safetensors (sharded above `shard_bytes`) that the reference library loads.

    `stored` is the dtype of the written numbers (None: that of the model); bfloat16 where float16 cannot hold them.

    `pad` is the padding token of the tokenizer. The reference library never trains its row, so a padding token that
    also begins or ends texts is not written. That of a RoBERTa follows from its positions.
    """
    if folder.is_file():
        raise ConfigError(f"{folder} is a file: give a folder to write the checkpoint into")
    folder.mkdir(parents=True, exist_ok=True)
    kind = family(model.config.family)
    if quantised(model):
        tensors, settings = own.written(model, [entry.theirs for entry in kind.entries(model.config)])
        _write_shards([tensors], folder)
        foreign = kind.write(model.config) | {"torch_dtype": str(model.dtype).removeprefix("torch.")}
        _write_json(folder / "config.json", foreign | {"quantization_config": settings})
        return
    state = model.state_dict()
    dtype = stored or state["embedding.weight"].dtype
    if dtype is torch.float16 and any(float(one.abs().max()) > torch.finfo(dtype).max for one in state.values()):
        dtype = torch.bfloat16
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for entry in kind.entries(model.config):
        tensor = pack(entry, state).to(dtype)
        size = tensor.numel() * tensor.element_size()
        if filled and filled + size > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][entry.theirs] = tensor
        filled += size
    _write_shards(shards, folder)
    foreign = kind.write(model.config) | {"torch_dtype": str(dtype).removeprefix("torch.")}
    taken = (*model.config.eos, model.config.bos)  # these must be trained
    if pad is not None and pad not in taken and not model.spec.pads and foreign.get("pad_token_id") is None:
        foreign["pad_token_id"] = pad
    _write_json(folder / "config.json", foreign)


def _write_json(path: Path, value: Any) -> None:
    write_file(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


class _Reader:
    """The tensors of a folder by name, from any shard, with or without the base-model prefix."""

    def __init__(self, folder: Path, stack: ExitStack):
        self.folder = folder
        self.files: dict[str, Any] = {}
        self.places: dict[str, tuple[Tensor, dict[str, Any]]] = {}  # bytes of the numbers in a file, and its header
        for path in _weight_files(folder):
            try:
                handle = stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path} is damaged or cut short: {error}; fetch or write it again") from None
            self.files |= dict.fromkeys(handle.keys(), handle)  # its header is valid
            self.places |= dict.fromkeys(handle.keys(), _mapped(path))
        self.taken: set[str] = set()
        self.beside: set[str | None] = set()  # biases of quantised matrices
        self.spare = BUFFERS

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of most of the stored numbers."""
        sizes: Counter[str] = Counter()
        for name, handle in self.files.items():
            part = handle.get_slice(name)
            sizes[part.get_dtype()] += torch.Size(part.get_shape()).numel()
        floats = [_DTYPES[name] for name, _ in sizes.most_common() if name in _DTYPES]
        return floats[0] if floats else torch.float32

    def find(self, name: str) -> str | None:
        """The name of a tensor in the files."""
        return next((other for other in spellings(name) if other in self.files), None)

    def look(self, name: str) -> Tensor | None:
        """The tensor, or None."""
        held = self.find(name)
        return None if held is None else self._tensor(held)

    def take(self, name: str, *also: str) -> Tensor:
        held = next((found for found in map(self.find, (name, *also)) if found is not None), None)
        if held is None:
            raise CheckpointError(self._missing(name))
        self.taken.add(held)
        return self._tensor(held)

    def _missing(self, name: str) -> str:
        part = part_of_head(name)
        if not part:
            return f"{self.folder} has no tensor '{name}', which config.json requires"
        return (
            f"{self.folder} lacks {part} (there is no tensor '{name}'), which config.json requires: these are the "
            "weights of the model without it, or with another head. Name the class that they belong to in "
            "'architectures' (...Model for a bare one), or fetch the weights of the whole model"
        )

    def packed(self, entry: Entry, scheme: Scheme) -> Packed | None:
        """The quantised matrix of an entry, or None.

        Raises:
            CheckpointError: its tensors do not fit each other.
        """
        module = entry.theirs.removesuffix(".weight")
        taken: list[str] = []

        def take(ending: str) -> Tensor | None:
            held = self.find(f"{module}.{ending}")
            if held is None:
                return None
            taken.append(held)
            return self._tensor(held)

        try:
            found = scheme(take) if entry.theirs.endswith(".weight") else None
        except CheckpointError as error:
            raise CheckpointError(f"{self.folder}: '{module}': {error}") from None
        if found is not None:
            self.taken |= set(taken)
            self.spare = _SPARE
            self.beside.add(self.find(f"{module}.bias"))
        return found

    def _tensor(self, name: str) -> Tensor:
        """A view of the file for float tensors; the library would copy."""
        numbers, header = self.places[name]
        dtype, (first, last) = _DTYPES.get(header[name]["dtype"]), header[name]["data_offsets"]
        raw = numbers[first:last]
        if dtype is None or raw.data_ptr() % dtype.itemsize:
            return self.files[name].get_tensor(name)
        return raw.view(dtype).view(header[name]["shape"])

    def check_rest(self, copies: dict[str, Tensor | None]) -> None:
        """Refuse unexpected tensors; `copies` may repeat one of the model (None: they are ignored)."""
        rest = {
            name
            for name in self.files
            if name not in self.taken and not (BUFFERS.search(name) or self.spare.search(name))
        }
        for name in rest & copies.keys():
            held, ours = self._tensor(name), copies[name]
            if ours is None:
                continue
            if held.shape != ours.shape or not torch.equal(held.to(ours), ours):
                raise CheckpointError(
                    f"{self.folder}: '{name}' must repeat another tensor (config.json ties the head, or this table, to "
                    "the embedding), but differs from it"
                )
        rest -= copies.keys()
        # Some tools write a bias for every matrix, of zeros where the family has none.
        rest -= {name for name in rest & self.beside if name and not bool(self._tensor(name).any())}
        heads = sorted({part for part in map(part_of_head, rest) if part})
        if heads:
            names = ", ".join(sorted(name for name in rest if part_of_head(name))[:4])
            raise CheckpointError(
                f"{self.folder} holds {' and '.join(heads)} ({names}), which config.json does not name, or names "
                "otherwise: write the class that these weights belong to into 'architectures' (for example "
                f'["...{SUFFIXES["text"]}"]), or leave the tensors of the head out to load the model without it'
            )
        if rest:
            names = ", ".join(sorted(rest)[:4])
            raise CheckpointError(f"{self.folder} holds {len(rest)} tensors that config.json does not explain: {names}")


def spellings(name: str) -> list[str]:
    """A name of a tensor with and without the prefixes of base models."""
    bare = [name, *(name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix))]
    return [*bare, *(prefix + one for prefix in PREFIXES for one in bare)]


def _mapped(path: Path) -> tuple[Tensor, dict[str, Any]]:
    """The mapped bytes of a safetensors file, and its header, which the library has checked."""
    whole = mapped(path)
    size = int.from_bytes(whole[:8].numpy().tobytes(), "little")
    return whole[8 + size :], json.loads(whole[8 : 8 + size].numpy().tobytes())


def _weight_files(folder: Path) -> Iterator[Path]:
    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if whole.exists():
        if index.exists():  # as the reference library does
            _log.warning("%s has both %s and %s: the shards are not read", folder, whole.name, index.name)
        yield whole
    elif index.exists():
        places = read_json(index).get("weight_map")
        files = list(places.values()) if isinstance(places, dict) else []
        bad = [name for name in files if not isinstance(name, str) or Path(name).name != name]
        if bad or not files:
            raise CheckpointError(f"{index} names no usable shards: {bad[:4] or 'empty weight_map'}")
        names = sorted(set(files))
        missing = [name for name in names if not (folder / name).exists()]
        if missing:
            raise CheckpointError(f"{folder} lacks the shards {', '.join(missing)} that its index names")
        yield from (folder / name for name in names)
    else:
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        hint = f"; {pickled[0]} is a pickle, which is never loaded: convert it to safetensors" if pickled else ""
        raise CheckpointError(f"{folder} has no model.safetensors{hint}")


def _write_shards(shards: list[dict[str, Tensor]], folder: Path) -> None:
    metadata = {"format": "pt"}
    if len(shards) == 1:
        write_file(folder / "model.safetensors", lambda path: save_file(shards[0], path, metadata=metadata))
        (folder / "model.safetensors.index.json").unlink(missing_ok=True)
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / name, lambda path, shard=shard: save_file(shard, path, metadata=metadata))
        weight_map |= dict.fromkeys(shard, name)
    size = sum(t.numel() * t.element_size() for shard in shards for t in shard.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    write_file(folder / "model.safetensors.index.json", (json.dumps(index, indent=2) + "\n").encode())
    (folder / "model.safetensors").unlink(missing_ok=True)


def read_provenance(source: Path) -> dict[str, Any]:
    """The record of how a checkpoint was made here: `handscroll.json`, or a key of a GGUF file."""
    if is_gguf(source):
        return read_gguf(source).table(PROVENANCE_KEY)
    path = source / PROVENANCE
    return read_json(path) if path.exists() else {}


def write_provenance(record: dict[str, Any], folder: Path) -> None:
    """Write the record into a folder; where there is none, that of another model is removed."""
    if record:
        _write_json(folder / PROVENANCE, record)
    else:
        (folder / PROVENANCE).unlink(missing_ok=True)


def weight_sizes(source: Path) -> tuple[int, str, int]:
    """(parameters, dtypes, bytes) of the stored weights, read only from the headers of the files."""
    if is_gguf(source):
        return sizes_of(read_gguf(source))
    parameters, stored = 0, 0
    dtypes: set[str] = set()
    with ExitStack() as stack:
        reader = _Reader(source, stack)
        for name, handle in reader.files.items():
            if BUFFERS.search(name):
                continue
            part = handle.get_slice(name)
            first, last = reader.places[name][1][name]["data_offsets"]
            dtypes.add(part.get_dtype())
            parameters += torch.Size(part.get_shape()).numel()
            stored += last - first
    names = "/".join(sorted(dtypes))
    if method := quantisation_of(read_json(source / "config.json")).get("quant_method"):
        kind, config = read_config(source)
        parameters = sum(parameter.numel() for parameter in empty_model(kind, config).parameters())
        names = f"{method}, {names}"
    return parameters, names, stored


_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
