"""Reads adapter folders in PEFT's format: LoRA with rank and alpha patterns, rsLoRA, DoRA, biases and whole modules.

A folder holds `adapter_config.json` and `adapter_model.safetensors`. Tensors are named after the modules of the
reference library, so the entries of a family say where they belong (`models/adapters.py`).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.base.spec import HeadSpec
from handscroll.models.heads import part_of_head
from handscroll.models.weights import ADAPTER, read_json

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
CONFIG, WEIGHTS = ADAPTER, "adapter_model.safetensors"
HEAD = "head.json"  # what a head that the adapter holds is, as our own adapters say it
PREFIX = "base_model.model."
KINDS = {"SEQ_CLS": "text", "TOKEN_CLS": "tokens", "QUESTION_ANS": "answer"}  # task_type -> kind of head
BEFORE = re.compile(r"(^|\.)(pre_classifier|dense)\.")  # layers of a head before its last one
# Keys that describe how the adapter was trained, or whose effect is in the names and shapes of its tensors.
IGNORED = frozenset(
    """
    auto_mapping base_model_name_or_path revision inference_mode task_type peft_version peft_type lora_dropout
    fan_in_fan_out target_modules exclude_modules layers_to_transform layers_pattern bias lora_bias
    megatron_core qalora_group_size eva_config corda_config loftq_config runtime_config
""".split()
)
READ = frozenset(
    """
    r lora_alpha rank_pattern alpha_pattern use_rslora use_dora init_lora_weights trainable_token_indices
    modules_to_save ensure_weight_tying
""".split()
)
# Initialisations that leave the base as it is. The others (pissa, olora, corda, loftq) change it before training.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal", "default")


@dataclass(eq=False)
class LowRank:
    """The update of one matrix (N, D): A (R, D), B (N, R), their scale, DoRA's magnitudes (N,), a bias (N,).

    `table`: the matrix is a token table (V, D) of which rows are looked up; A is then (D, R) and B (R, V) of PEFT
    turned, so that B A has its shape.
    """

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None
    bias: Tensor | None = None
    table: bool = False


@dataclass(eq=False)
class Adapter:
    """An adapter as its folder holds it, by names of the reference library.

    `whole` are tensors that replace those of the base; `same` are copies of tensors of the base; `rows` are the tokens
    of a table that were trained, and their vectors. `saved` are the ends of the names of modules that were trained as a
    whole, without their tied copies. `head` is the head whose tensors are among the whole ones.
    """

    folder: Path
    base: str
    low: dict[str, LowRank] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)
    same: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    saved: tuple[str, ...] = ()
    dora: bool = False
    head: HeadSpec | None = None

    def describe(self) -> str:
        """One line: kind, ranks, adapted modules, what else it changes."""
        ranks = sorted({one.a.shape[0] for one in self.low.values()})
        modules = sorted({name.rpartition(".")[2] for name in self.low})
        more = [f"{len(self.whole)} whole tensors"] * bool(self.whole) + ["trained tokens"] * bool(self.rows)
        kind = "DoRA" if self.dora else "LoRA"
        text = f"{kind} of rank {', '.join(map(str, ranks)) or 0} on {len(self.low)} modules ({', '.join(modules)})"
        return ", ".join([text, *more])


def named_base(folder: Path) -> str:
    """The base that an adapter names."""
    base = read_json(folder / CONFIG).get("base_model_name_or_path")
    return base if isinstance(base, str) else ""


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter folder.

    Raises:
        CheckpointError: the folder is no adapter, or is damaged. ConfigError: it is of a kind that is not understood.
    """
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} has no {CONFIG}: it is not an adapter folder of PEFT's form")
    config = read_json(folder / CONFIG)
    _check(config, folder)
    tensors = _tensors(folder)
    found = Adapter(folder, named_base(folder), saved=_saved(config, folder), dora=bool(config.get("use_dora")))
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, part = _split(name)
        if part in ("weight", "bias"):
            same = (module.endswith(".base_layer") and part == "weight") or ".original_module" in module
            module = WRAPPED.sub("", module)
            (found.same if same else found.whole)[f"{module}.{part}"] = tensor
        else:
            parts.setdefault(module, {})[part] = tensor
    for module, own in parts.items():
        if "trained" in own:
            found.rows[module] = _rows(module, own.pop("trained"), config, folder)
        if own:
            found.low[module] = _low_rank(module, own, config, folder)
    found.head = _head(config, found.whole, folder)
    if not (found.low or found.whole or found.rows):
        raise CheckpointError(f"{folder / WEIGHTS} changes nothing: it holds no tensors of an adapter")
    return found


def _saved(config: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    """The ends of the names of modules that were trained as a whole; PEFT ties copies of two names if it is told to."""
    names = config.get("modules_to_save") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{folder / CONFIG}: modules_to_save is {names!r}; expected a list of names")
    tied = ("embed_tokens", "lm_head") if config.get("ensure_weight_tying") else ()
    return tuple(name for name in names if name.rpartition(".")[2] not in tied)


def _head(config: Mapping[str, Any], whole: Mapping[str, Tensor], folder: Path) -> HeadSpec | None:
    """The head that an adapter holds: as `head.json` tells, or of as many outputs as its last layer has."""
    if (folder / HEAD).is_file():
        return HeadSpec.parse(read_json(folder / HEAD), str(folder / HEAD))
    kind, last = KINDS.get(config.get("task_type") or ""), {"answer": "a head for question answering"}
    words = last.get(kind or "", "a head for classification")
    ends = [name for name in whole if part_of_head(name) == words and not BEFORE.search(name)]
    rows = [len(whole[name]) for name in ends if whole[name].dim() == 2]
    if kind is None or not rows:
        return None
    labels = () if kind == "answer" else tuple(f"LABEL_{number}" for number in range(rows[-1]))
    problem = "number" if kind == "text" and len(labels) == 1 else "one"
    return HeadSpec.parse({"kind": kind, "labels": labels, "problem": problem}, str(folder / CONFIG))


# What PEFT puts into the names of modules that it wraps.
WRAPPED = re.compile(r"\.(base_layer|original_module|modules_to_save(\.default)?)(?=\.|$)")
PARTS = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_B.bias": "lora_bias",
    "lora_embedding_A": "table_a",
    "lora_embedding_B": "table_b",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",  # PEFT before 0.12
    "token_adapter.trainable_tokens_delta": "trained",
}


def _split(name: str) -> tuple[str, str]:
    """The module of a tensor, and what the tensor is in its update ("weight" or "bias": a tensor of the model)."""
    name = name.removeprefix(PREFIX)
    for ending, part in PARTS.items():
        if name.endswith("." + ending):
            return name.removesuffix("." + ending), part
    module, _, part = name.rpartition(".")
    if part not in ("weight", "bias"):
        raise ConfigError(f"the adapter has the tensor '{name}', which is not understood; merge it with PEFT first")
    return module, part


def _check(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse kinds of adapters and settings that would change the result in a way that is not understood."""
    where, kind = folder / CONFIG, config.get("peft_type")
    if kind != "LORA":
        raise ConfigError(
            f"{where}: the adapter is of type {kind!r}, only 'LORA' (with rsLoRA and DoRA) is read; merge it with PEFT "
            "(merge_and_unload) and load the merged folder"
        )
    start = config.get("init_lora_weights", True)
    if not any(start is plain or start == plain for plain in PLAIN_STARTS):
        raise ConfigError(
            f"{where}: init_lora_weights {start!r} changed the base before training, so the adapter does not fit the "
            "published base; save it again with PEFT's path_initial_model_for_weight_conversion, or merge it with PEFT"
        )
    for key, value in config.items():
        off = value is None or value is False or value in ({}, [], "")
        if key not in IGNORED | READ and not off:
            raise ConfigError(
                f"{where}: '{key}' = {value!r} may change the result and is not understood; merge the adapter with "
                "PEFT (merge_and_unload) and load the merged folder"
            )


def _tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.exists():
        pickled = (folder / "adapter_model.bin").exists()
        hint = "; adapter_model.bin is a pickle, which is never loaded: convert it to safetensors" if pickled else ""
        raise CheckpointError(f"{folder} has no {WEIGHTS}{hint}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or cut short: {error}; fetch or write it again") from None
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS or not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: '{name}' holds {tensor.dtype} or numbers that are not finite")
    return tensors


def _low_rank(module: str, own: dict[str, Tensor], config: Mapping[str, Any], folder: Path) -> LowRank:
    table = "table_a" in own
    names = ("table_a", "table_b") if table else ("a", "b")
    if missing := [name for name in names if name not in own]:
        raise CheckpointError(f"{folder / WEIGHTS}: the update of '{module}' has no {missing[0][-1].upper()}")
    a, b = (own[name].to(torch.float32) for name in names)
    magnitude = own.get("magnitude")
    rank = _number(config, "r", "rank_pattern", module, folder)
    if a.dim() != 2 or b.dim() != 2 or not a.shape[0] == b.shape[1] == rank:
        raise CheckpointError(
            f"{folder}: the update of '{module}' has the shapes {tuple(a.shape)} and {tuple(b.shape)}, but "
            f"{CONFIG} gives it rank {rank}"
        )
    if bool(config.get("use_dora")) != (magnitude is not None) or (table and magnitude is not None):
        raise ConfigError(
            f"{folder}: '{module}' and use_dora = {config.get('use_dora')} do not fit: DoRA is read for projections, "
            "and each needs its magnitudes; merge the adapter with PEFT"
        )
    alpha = _number(config, "lora_alpha", "alpha_pattern", module, folder)
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    if table:
        a, b = b.T.contiguous(), a.T.contiguous()
    bias = own.get("lora_bias")
    return LowRank(a, b, scale, magnitude, None if bias is None else bias.to(torch.float32), table)


def _number(config: Mapping[str, Any], key: str, pattern: str, module: str, folder: Path) -> float:
    """A setting of a module: that of the first pattern that matches the end of its name, or the common one."""
    value = config.get(key)
    patterns = config.get(pattern) or {}
    try:
        matching = [own for name, own in patterns.items() if re.match(rf"(.*\.)?({name})$", module)]
    except (re.error, AttributeError):
        raise ConfigError(f"{folder / CONFIG}: {pattern} {patterns!r} is no table of patterns") from None
    value = matching[0] if matching else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
        raise ConfigError(f"{folder / CONFIG}: {key} of '{module}' is {value!r}, expected a number above 0")
    return value


def _rows(module: str, vectors: Tensor, config: Mapping[str, Any], folder: Path) -> tuple[Tensor, Tensor]:
    """Ids, in order, and vectors of trained tokens."""
    given = config.get("trainable_token_indices")
    if isinstance(given, dict):
        given = next((ids for name, ids in given.items() if module == name or module.endswith("." + name)), None)
    if not isinstance(given, list) or not all(type(one) is int and one >= 0 for one in given):
        raise ConfigError(f"{folder / CONFIG}: trainable_token_indices does not say which tokens of '{module}' it has")
    if len(given) != len(vectors) or len(set(given)) != len(given):
        raise CheckpointError(f"{folder}: '{module}' has {len(vectors)} trained tokens, {CONFIG} names {len(given)}")
    ids = torch.tensor(given)
    order = ids.argsort()
    return ids[order], vectors[order]
