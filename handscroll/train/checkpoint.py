"""Checkpoints of a training run: tensors as safetensors, everything else as JSON, never pickle.

Saving and loading are bit-exact.
"""

import json
import math
import random
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from handscroll.base.errors import CheckpointError, HandscrollError
from handscroll.base.runs import STEP_NAME, Entry, commit_checkpoint, verify_folder, write_chunks

_FORMAT = 1
_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
# These settings change how a step is computed, not its result. They may differ when a run moves to another machine.
_EXECUTION = {"foreach", "fused", "capturable", "differentiable"}


def save_checkpoint(
    run: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: dict[str, Any],
    keep: int = 2,
    spare: Collection[int] = (),
) -> Path:
    """Commit `run/step-NNNNNN/` with one `<stem>.safetensors` per item of `tensors` and `state.json`.

    Tensors may be on any device and in any memory layout. Each is copied to the CPU only while it is written. A tensor
    with two names (tied weights) is stored once. See `base.runs.commit_checkpoint`.

    Raises:
        CheckpointError: the system refused, a tensor cannot be stored (sparse, complex, quantised), or `state` would
            not come back from JSON unchanged (tuples, keys that are not text, NaN).
    """
    kept: dict[str, dict[str, Tensor]] = {}
    tied: dict[str, dict[str, str]] = {}
    for stem, named in tensors.items():
        kept[stem], tied[stem] = _split_tied(stem, named)
    content = _state_bytes({"format": _FORMAT, "state": state, "step": step, "tied": tied})
    files = {f"{stem}.safetensors": partial(_write_tensors, named) for stem, named in kept.items()}
    needed = sum(tensor.nbytes for named in kept.values() for tensor in named.values()) + len(content)
    return commit_checkpoint(run, step, {**files, "state.json": content}, keep, needed, spare)


def load_checkpoint(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Verify a checkpoint and read it: the tensors by stem and name, on the CPU, and the state as it was saved.

    Tied names return as one tensor object.

    Raises:
        CheckpointError: a file is damaged or missing, a newer version of Handscroll wrote it, or the folder's name
            gives another step than its content.
    """
    verify_folder(folder)
    try:
        outer = json.loads((folder / "state.json").read_bytes())
        tensors = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error}; use another checkpoint") from error
    if not isinstance(outer, dict) or outer.get("format") != _FORMAT:
        raise CheckpointError(f"{folder}/state.json is not of format {_FORMAT}; use the version that wrote it")
    named = STEP_NAME.fullmatch(folder.name)
    with as_saved(folder):
        if named and int(named[1]) != outer["step"]:
            # The manifest cannot detect this: a complete folder of an older step agrees with its own manifest.
            raise CheckpointError(
                f"{folder} holds step {outer['step']}: a folder was copied or renamed; remove or rename it"
            )
        for stem, aliases in outer["tied"].items():
            for alias, name in aliases.items():
                tensors[stem][alias] = tensors[stem][name]
        return tensors, outer["state"]


@contextmanager
def as_saved(folder: Path) -> Iterator[None]:
    """Inside, a checkpoint is taken for what was saved; a stranger's may hold something else under a true manifest.

    Raises:
        CheckpointError: it holds something else.
    """
    try:
        yield
    except (HandscrollError, torch.OutOfMemoryError):
        raise
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder} does not hold what a run saves ({type(error).__name__}: {error}); use another checkpoint"
        ) from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Flatten an optimizer: tensors named `<parameter number>.<state name>`, and the rest as JSON values.

    Raises:
        CheckpointError: the optimizer keeps state other than tensors and plain values (LBFGS does).
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for number, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{number}.{name}"] = value.detach()
            elif value is None or isinstance(value, bool | int | float | str):
                values[f"{number}.{name}"] = value
            else:
                raise CheckpointError(
                    f"{type(optimizer).__name__} keeps {name} as {type(value).__name__}, which cannot be saved; "
                    f"allowed: tensors, numbers, text"
                )
    state = {
        "kind": type(optimizer).__name__,
        "shapes": [list(parameter.shape) for parameter in _parameters(optimizer)],
        "groups": [_settings(group) for group in optimizer.param_groups],
        "tensors": sorted(tensors),
        "values": values,
    }
    return tensors, state


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    scheduled: Collection[str] = ("lr", "initial_lr"),
    place: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> None:
    """Restore, bit for bit, the state that `optimizer_tensors` saved, into a new optimizer with the same settings.

    Unlike `Optimizer.load_state_dict` it keeps the dtype of each state tensor: torch casts float32 moments to the
    dtype of bfloat16 parameters. Settings named in `scheduled` are restored. All others must agree, except `foreach`,
    `fused` and similar ones, which belong to the machine. State tensors are copies. `place(parameter, value)` shards a
    whole tensor of the parameter's shape in the same way as the parameter (sharded training).

    Raises:
        CheckpointError: the optimizer, its parameters or its settings differ. The optimizer is then unchanged.
    """
    _check_same(optimizer, tensors, state, scheduled)
    parameters = _parameters(optimizer)
    stays_on_cpu = [
        not (group.get("fused") or group.get("capturable")) for group in optimizer.param_groups for _ in group["params"]
    ]
    restored: dict[Tensor, dict[str, Any]] = {}
    for key, value in [*state["values"].items(), *tensors.items()]:
        number, _, name = key.partition(".")
        parameter = parameters[int(number)]
        if isinstance(value, Tensor):
            device = "cpu" if name == "step" and stays_on_cpu[int(number)] else parameter.device
            value = value.to(device, copy=True)
            if place is not None and value.shape == parameter.shape:
                value = place(parameter, value)
        restored.setdefault(parameter, {})[name] = value
    for group, saved in zip(optimizer.param_groups, state["groups"], strict=True):
        for name in saved["settings"].keys() & set(scheduled):
            _set(group, name, saved["settings"][name])
    optimizer.state.clear()
    optimizer.state.update(restored)


def rng_state(generators: Mapping[str, random.Random | torch.Generator] | None = None) -> dict[str, Any]:
    """The state of `generators` and of the global generators of torch, Python and (if in use) CUDA, as JSON."""
    state: dict[str, Any] = {
        "torch": _hex(torch.get_rng_state()),
        "python": _plain(random.getstate()),
        "generators": {
            name: _plain(source.getstate()) if isinstance(source, random.Random) else _hex(source.get_state())
            for name, source in (generators or {}).items()
        },
    }
    # A query would initialise CUDA if it is not in use yet, which takes hundreds of megabytes.
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = [_hex(one) for one in torch.cuda.get_rng_state_all()]
    return state


def restore_rng(
    state: Mapping[str, Any], generators: Mapping[str, random.Random | torch.Generator] | None = None
) -> None:
    """Set the generators to the state that `rng_state` returned.

    Raises:
        CheckpointError: the names in `generators` differ, or the number of CUDA devices does. Remove the key "cuda"
            from the state to resume without their exact random numbers.
    """
    generators = generators or {}
    if generators.keys() != state["generators"].keys():
        raise CheckpointError(
            f"the checkpoint has random generators {sorted(state['generators'])}, this run {sorted(generators)}: "
            f"resume with the same set-up"
        )
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if "cuda" in state and len(state["cuda"]) != devices:
        raise CheckpointError(
            f"the checkpoint has the random state of {len(state['cuda'])} CUDA devices, this machine has {devices}: "
            f"resume on such a machine, or remove 'cuda' from the state and accept other random numbers"
        )
    torch.set_rng_state(_unhex(state["torch"]))
    random.setstate(_unplain(state["python"]))
    for name, source in generators.items():
        if isinstance(source, random.Random):
            source.setstate(_unplain(state["generators"][name]))
        else:
            source.set_state(_unhex(state["generators"][name]))
    if "cuda" in state:
        torch.cuda.set_rng_state_all([_unhex(text) for text in state["cuda"]])


def _split_tied(stem: str, named: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors to store, and the other names that stand for the same memory."""
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in named.items():
        if tensor.dtype not in _CODES or tensor.layout != torch.strided or tensor.is_meta:
            raise CheckpointError(
                f"{stem}: {name} cannot be stored ({tensor.dtype}, {tensor.layout}, on {tensor.device}); "
                f"allowed: dense tensors of {', '.join(str(dtype).removeprefix('torch.') for dtype in _CODES)}"
            )
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        first = seen.setdefault(place, name) if tensor.numel() else name
        if first == name:
            kept[name] = tensor.detach()
        else:
            aliases[name] = first
    return kept, aliases


def _write_tensors(named: Mapping[str, Tensor], path: Path) -> Entry:
    """Write the safetensors format one tensor at a time.

    The library's own writer (0.8) raises errors without an errno, makes a file that the group cannot read, and, when it
    writes through bytes, needs the whole file in memory twice. Tests compare this writer with the library's, byte for
    byte.
    """
    return write_chunks(path, _chunks(named))


def _chunks(named: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    # With wide types first, every tensor is aligned to its element size, as the format recommends.
    order = sorted(named, key=lambda name: (-named[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in order:
        tensor = named[name]
        stop = start + math.prod(tensor.shape) * tensor.element_size()
        header[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        yield named[name].cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _state_bytes(state: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(state, ensure_ascii=False, allow_nan=False, indent=1, sort_keys=True)
        same = json.loads(text) == state
        data = (text + "\n").encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"the state of a checkpoint must be JSON: {error}") from None
    if not same:
        raise CheckpointError("the state of a checkpoint must come back from JSON unchanged: no tuples, only text keys")
    return data


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter group as JSON: the number of its parameters, and every setting."""
    settings = {name: _plain(value) for name, value in group.items() if name != "params"}
    return {"count": len(group["params"]), "settings": settings}


def _check_same(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    scheduled: Collection[str],
) -> None:
    differences = []
    live = {
        "kind": type(optimizer).__name__,
        "shapes": [list(parameter.shape) for parameter in _parameters(optimizer)],
        "groups": [len(group["params"]) for group in optimizer.param_groups],
    }
    saved = {"kind": state["kind"], "shapes": state["shapes"], "groups": [group["count"] for group in state["groups"]]}
    differences += [f"{name} was {saved[name]}, is {live[name]}" for name in live if live[name] != saved[name]]
    if sorted(tensors) != state["tensors"]:
        differences.append(f"tensors {sorted(set(tensors) ^ set(state['tensors']))} are missing or unexpected")
    for number, (group, old) in enumerate(zip(optimizer.param_groups, state["groups"], strict=False)):
        now = _settings(group)["settings"]
        for name, value in old["settings"].items():
            if name in _EXECUTION or name in scheduled:
                continue
            # A setting that only the current optimizer has is the default of a newer torch, and is not compared.
            if name not in now or now[name] != value:
                differences.append(f"{name} of group {number} was {value!r}, is {now.get(name, 'unknown')!r}")
    if differences:
        raise CheckpointError(
            f"the optimizer is not the one that was saved: {'; '.join(differences)}. Resume with the same settings"
        )


def _set(group: dict[str, Any], name: str, value: Any) -> None:
    if isinstance(group.get(name), Tensor):
        group[name].fill_(value)
    else:
        group[name] = value


def _plain(value: Any) -> Any:
    """Turn tuples into lists and scalar tensors into numbers, so that JSON returns the same value."""
    if isinstance(value, Tensor):
        return value.item()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _unplain(state: list[Any]) -> tuple[Any, ...]:
    version, words, gauss = state
    return version, tuple(words), gauss


def _hex(state: Tensor) -> str:
    return state.numpy().tobytes().hex()


def _unhex(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
