"""LoRA (Hu et al. 2021): low-rank updates of frozen projections, in PEFT's file format.

An adapted projection computes W x + (alpha / rank) B A x. A is initialised as torch initialises a linear layer. B is
zero, so that training starts from the unchanged model.
"""

import json
import math
import re
from collections.abc import Collection
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator
from safetensors.torch import save_file
from torch import Tensor, nn

from handscroll.base.config import Config
from handscroll.base.errors import ConfigError
from handscroll.base.runs import write_file
from handscroll.models.adapters import merge, whole_tensors
from handscroll.models.foreign import Entry
from handscroll.models.model import Model
from handscroll.models.peft import CONFIG, HEAD, PREFIX, WEIGHTS, Adapter
from handscroll.models.table import family
from handscroll.nn.adapted import Adapted, AdaptedTable, Update, dtype_of
from handscroll.nn.quantised import Quantised

TARGETS = ("query", "key", "value", "output")
MLP_TARGETS = ("gate", "up", "down")
HEADS = ("classifier.", "pooler.")
WHOLE = r"^(classifier|pooler|projection)\.|norm|embedding"  # what is trained whole beside updates
Frozen = Literal["float32", "bfloat16"]


class LoRA(Config):
    """Rank, scale and targets of LoRA. `tables` also trains norms and embeddings (LongLoRA, Chen et al. 2023).

    `frozen` is the dtype of the weights that are not trained. The updates are float32.
    """

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    targets: tuple[str, ...] = TARGETS
    tables: bool = False
    frozen: Frozen = "float32"

    @model_validator(mode="after")
    def _held(self):
        if self.tables and self.frozen != "float32":
            raise ValueError("tables are trained, and bfloat16 is too coarse for that: leave out tables or frozen")
        return self


def _fresh(base: nn.Linear | Quantised, rank: int, scale: float, generator: torch.Generator) -> Adapted:
    """A frozen layer, linear or quantised, with an update that will be trained."""
    rows, inner = (base.raw.shape[0], base.inner) if isinstance(base, Quantised) else base.weight.shape
    dtype = torch.promote_types(dtype_of(base), torch.float32)
    device = next(chain(base.parameters(), base.buffers())).device
    bound = 1 / math.sqrt(inner)
    drawn = torch.empty(rank, inner, dtype=dtype)  # on the CPU: all devices get the same
    a = nn.Parameter(drawn.uniform_(-bound, bound, generator=generator).to(device))
    b = nn.Parameter(torch.zeros(rows, rank, dtype=dtype, device=device))
    return Adapted(base, Update(a, b, scale))


def add_lora(model: Model, settings: LoRA, seed: int = 0) -> None:
    """Freeze `model` and adapt its target projections, in place. The classifier of a labelled model is still trained.

    Weights that are not trained get the dtype `settings.frozen`, if that is a narrower one.

    Raises:
        ConfigError: no layer has one of the targets.
    """
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, (nn.Linear, Quantised)) and n != "embedding"]
    known = {name.rsplit(".", 1)[-1] for name, _ in layers}
    wrong = [target for target in settings.targets if target not in known or target == "projection"]
    if wrong:
        allowed = ", ".join(sorted(known - {"projection"}))
        raise ConfigError(f"lora.targets: this model has no projection '{wrong[0]}'. Allowed: {allowed}")
    generator = torch.Generator().manual_seed(seed)
    tables = [name for name, _ in model.named_parameters() if "norm" in name or "embedding" in name]
    _freeze(model, tables if settings.tables else (), settings.frozen)
    for name, module in layers:
        if name.rsplit(".", 1)[-1] in settings.targets:
            model.set_submodule(name, _fresh(module, settings.rank, settings.alpha / settings.rank, generator))


def continue_lora(model: Model, adapter: Adapter, frozen: Frozen = "float32") -> LoRA:
    """Freeze `model` and train on what its one adapter holds, in place: low-rank updates, heads, norms, tables.

    Returns the settings of the adapter; of several ranks they have the highest, with its alpha.

    Raises:
        ConfigError: the adapter holds something that is not trained here.
    """
    held = {name: module for name, module in model.named_modules() if isinstance(module, Adapted)}
    whole = whole_tensors(model, adapter)
    others = sorted(name for name in whole if not re.search(WHOLE, name))
    reasons = {
        "it has no low-rank update of a projection": not held,
        "it has DoRA's magnitudes": any(module.update.gain is not None for module in held.values()),
        "it has biases of its updates": any(module.update.shift is not None for module in held.values()),
        "it changes a token table or a head by updates or single tokens": any(re.search(WHOLE, f"{n}.") for n in held)
        or any(isinstance(module, AdaptedTable) for module in model.modules()),
        f"it holds '{next(iter(others), '')}' whole": bool(others),
    }
    if reason := next((words for words, applies in reasons.items() if applies), None):
        raise ConfigError(
            f"{adapter.folder} cannot be tuned further as it is, since {reason}; merge it into its base first "
            f"(handscroll export {adapter.base or 'BASE'} OUT --adapter {adapter.folder}) and tune what was merged"
        )
    _freeze(model, whole, frozen)
    for module in held.values():  # updates of a fused projection share one A
        old = module.update
        module.update = Update(nn.Parameter(old.a.clone()), nn.Parameter(old.b / old.folded), old.folded)
    largest = max((module.update for module in held.values()), key=lambda update: len(update.a))
    values = {"rank": len(largest.a), "alpha": largest.scale * len(largest.a), "frozen": frozen}
    values["targets"] = tuple(sorted({name.rpartition(".")[2] for name in held}))
    values["tables"] = any(not name.startswith(HEADS) for name in whole)
    return LoRA.parse(values, f"adapter {adapter.folder}")


def _freeze(model: Model, trained: Collection[str], frozen: Frozen) -> None:
    """Train the named parameters and a head alone; the others get the dtype `frozen`, if that is a narrower one."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained or (model.spec.head is not None and name.startswith(HEADS)))
        if frozen == "bfloat16" and not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)


def merge_lora(model: Model) -> None:
    """Add every update to its weight, in place, and make all parameters trainable again."""
    merge(model)
    model.requires_grad_(True)


def stands_apart(model: Model) -> bool:
    """Whether PEFT can load what was trained without the base weights. Otherwise updates can only be merged.

    It can if other libraries know the family, and `save_adapter` can write it.
    """
    return not family(model.config.family).own and can_save(model)


def can_save(model: Model) -> bool:
    """Whether the family stores each adapted projection and each tensor that was trained whole as its own tensor."""
    known = {entry.ours[0] for entry in _fitting(family(model.config.family).entries(model.config))}
    return {f"{name}.weight" for name in _adapted(model)} | _whole(model).keys() <= known


def save_adapter(model: Model, settings: LoRA, folder: Path, base: str) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` in the form that PEFT reads.

    Tensors that were trained whole, such as those of a head, are among PEFT's `modules_to_save`. `head.json` says what
    the head is, for loading it here over a base that has none.

    Raises:
        ConfigError: the family stores the target fused (GPT-2's c_attn) or reordered (GLM-4's q). Merge instead.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kind, head = family(model.config.family), model.spec.head
    entries = {entry.ours[0]: entry for entry in _fitting(kind.entries(model.config))}
    copies = {ours: theirs for theirs, ours in kind.copies(model.config).items() if ours is not None}

    def foreign(name: str) -> Entry:
        if name not in entries:
            raise ConfigError(
                f"'{name}' is stored fused with others or reordered in family '{model.config.family}'; merge the update"
            )
        return entries[name]

    tensors: dict[str, Tensor] = {}
    modules: dict[str, Update] = {}
    for name, module in model.named_modules():
        if isinstance(module, Adapted):
            theirs = foreign(f"{name}.weight").theirs.removesuffix(".weight")
            modules[theirs] = module.update
            tensors[f"{theirs}.lora_A.weight"] = module.update.a
            tensors[f"{theirs}.lora_B.weight"] = module.update.b
    whole: set[str] = set()
    for name, parameter in _whole(model).items():
        entry = foreign(name)
        for theirs in filter(None, (entry.theirs, copies.get(name))):  # a tied head is then a matrix of its own
            stored = parameter.T if entry.transposed and parameter.dim() == 2 else parameter
            tensors[theirs] = stored if theirs == entry.theirs else stored.clone()  # a file holds no number twice
            whole.add(theirs.rpartition(".")[0])
    alphas = {name: one.scale * len(one.a) for name, one in modules.items()}
    config = {
        "peft_type": "LORA",
        "task_type": _task_type(model),
        "base_model_name_or_path": base,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "rank_pattern": {name: len(one.a) for name, one in modules.items() if len(one.a) != settings.rank},
        "alpha_pattern": {name: alpha for name, alpha in alphas.items() if not math.isclose(alpha, settings.alpha)},
        "target_modules": _targets(set(modules), {entry.theirs.removesuffix(".weight") for entry in entries.values()}),
        "modules_to_save": sorted(whole) or None,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(entries[f"{name}.weight"].transposed for name in _adapted(model)),
        "inference_mode": True,
    }
    written = {f"{PREFIX}{name}": tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    write_file(folder / WEIGHTS, lambda path: save_file(written, path, metadata={"format": "pt"}))
    write_file(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    if head is not None and head.kind != "none":
        write_file(folder / HEAD, (json.dumps(head.model_dump(mode="json"), indent=2) + "\n").encode())


def _adapted(model: Model) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Adapted)]


def _whole(model: Model) -> dict[str, Tensor]:
    """Parameters that are trained besides the updates, by our names."""
    inside = tuple(f"{name}." for name in _adapted(model))
    trained = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    return {name: parameter for name, parameter in trained if not name.startswith(inside)}


def _targets(adapted: set[str], every: set[str]) -> list[str]:
    """What PEFT calls the adapted modules: their last names, or as much of them as tells them from others."""
    others = {name.rpartition(".")[2] for name in every - adapted}
    short = {name: name.rpartition(".")[2] for name in adapted}
    inner = {name: re.split(r"\.\d+\.", name)[-1] for name in every}
    elsewhere = {inner[name] for name in every - adapted}  # only some layers are adapted
    longer = {name: name if inner[name] in elsewhere else inner[name] for name in adapted}
    return sorted({last if last not in others else longer[name] for name, last in short.items()})


def _task_type(model: Model) -> str | None:
    """PEFT's word for what the model is for; it decides which class loads the adapter."""
    if model.spec.head is not None:
        return {"text": "SEQ_CLS", "tokens": "TOKEN_CLS", "answer": "QUESTION_ANS"}.get(model.spec.head.kind)
    if model.spec.encoder:
        return "SEQ_2_SEQ_LM"
    return None if model.spec.both_ways else "CAUSAL_LM"


def _fitting(entries: list[Entry]) -> list[Entry]:
    return [entry for entry in entries if len(entry.ours) == 1 and entry.pairs is None and not entry.gathered]
