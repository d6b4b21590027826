"""Optimisers: one settings class for torch's Adam, AdamW, SGD, Adafactor and Muon, and for our LAMB."""

import re
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from handscroll.base.config import Config
from handscroll.train.lamb import Lamb

# The options of each optimiser besides `weight_decay` and `clip`, with their defaults (the last is its rate).
# Any other option is refused: an option that is accepted and then ignored would be a defect.
DEFAULTS: dict[str, dict[str, Any]] = {
    "adam": {"betas": (0.9, 0.95), "eps": 1e-8, "lr": 3e-4},
    "adamw": {"betas": (0.9, 0.95), "eps": 1e-8, "lr": 3e-4},
    "sgd": {"momentum": 0.9, "nesterov": False, "lr": 0.1},
    "lamb": {"betas": (0.9, 0.999), "eps": 1e-6, "lr": 2e-3},
    "muon": {"betas": (0.9, 0.95), "eps": 1e-8, "momentum": 0.95, "matrix_lr": 0.02, "lr": 3e-4},
    "adafactor": {"eps": torch.finfo(torch.float32).eps, "lr": 1e-2},
}
_OPTIONS = ("betas", "eps", "matrix_lr", "momentum", "nesterov")


class Optimizer(Config):
    """The update rule and its rates. Rates are peak values; the schedule multiplies them.

    Options that the rule does not use are None, and are refused when given. Options that are left out get `DEFAULTS`.
    Weight decay acts on matrices only, including embeddings and head (`decays`). With rate lr it means:

    - adam (Kingma & Ba 2014), sgd (momentum, optionally Nesterov's, as in Sutskever et al. 2013): coupled. The
      gradient becomes g + weight_decay * w, which passes through the moments, and Adam divides it by them.
    - adamw (Loshchilov & Hutter 2017), adafactor (Shazeer & Stern 2018): decoupled, w -= lr * weight_decay * w.
    - lamb (You et al. 2019): weight_decay * w joins Adam's step before the trust ratio. The ratio acts on matrices
      only, as in the authors' code; vectors take Adam's plain step.
    - muon (Jordan et al. 2024): orthogonalised momentum (Nesterov's) on the matrices of the layers at `matrix_lr`;
      embeddings, heads, norms and biases use AdamW at `lr`. Decoupled on both sides, each with its own rate.

    `eps` is added to the root of the second moment (muon: in its AdamW part). For adafactor it is the minimum of that
    root. Adafactor keeps a row and a column of second moments and no momentum, and scales its step by the size of the
    weights: min(lr, 1 / sqrt(t)) * max(0.001, rms(w)). torch has this variant; the paper fixes lr at 0.01.
    Limits: torch's Adafactor (2.13) cannot step sharded parameters (DTensor); the others can.
    """

    name: Literal["adam", "adamw", "sgd", "lamb", "muon", "adafactor"] = "adamw"
    lr: float = Field(default=3e-4, gt=0, allow_inf_nan=False, description="default by name: see DEFAULTS")
    matrix_lr: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    betas: tuple[float, float] | None = None
    eps: float | None = Field(default=None, gt=0)
    momentum: float | None = Field(default=None, ge=0, lt=1)
    nesterov: bool | None = None
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    clip: float | None = Field(default=1.0, gt=0, description="largest global gradient norm; null: no clipping")
    layer_decay: float = Field(
        default=1.0, gt=0, le=1, description="factor of the rate for each layer below the last (Howard & Ruder 2018)"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        """Fill in the defaults of the named rule, so that a saved recipe shows the numbers that were used."""
        if not isinstance(values, dict):
            return values
        name = values.get("name", "adamw")
        defaults = DEFAULTS.get(name) if isinstance(name, str) else None
        if defaults is None:
            return values  # validation of the fields refuses the name
        ignored = [option for option in _OPTIONS if option not in defaults and values.get(option) is not None]
        if ignored:
            given = ", ".join(f"{option} = {values[option]!r}" for option in ignored)
            allowed = ", ".join(["lr", *(option for option in defaults if option != "lr"), "weight_decay", "clip"])
            raise ValueError(f"{name} would ignore {given}; it takes {allowed}: remove the others or change the name")
        return values | {option: value for option, value in defaults.items() if values.get(option) is None}

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.betas is not None and not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {list(self.betas)}: give two numbers from 0 to below 1, for example [0.9, 0.95]")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov = true needs a momentum above 0; raise momentum or leave nesterov out")
        return self

    def build(self, model: nn.Module) -> dict[str, torch.optim.Optimizer]:
        """The optimisers by name for all parameters that require gradients. Each group stores its rate as `peak`."""
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        head = id(getattr(getattr(model, "projection", None), "weight", None))
        matrices, decayed, rest = [], [], []
        for parameter in model.parameters():
            if not parameter.requires_grad:
                continue
            if not decays(parameter):
                rest.append(parameter)
            elif self.name == "muon" and id(parameter) not in tables and id(parameter) != head:
                matrices.append(parameter)
            else:
                decayed.append(parameter)
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ]
        if self.name == "lamb":
            groups[1]["adapt"] = False
        groups = self._by_depth([group for group in groups if group["params"]], model)
        optimizers: dict[str, torch.optim.Optimizer] = {}
        if groups:
            optimizers["adamw" if self.name == "muon" else self.name] = self._rule(groups)
        if matrices:
            own = self._by_depth([{"params": matrices, "weight_decay": self.weight_decay}], model)
            optimizers["muon"] = torch.optim.Muon(own, lr=_set(self.matrix_lr), momentum=_set(self.momentum))
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:
                group["peak"] = group["lr"] * self.layer_decay ** group.pop("below", 0)
        return optimizers

    def _by_depth(self, groups: list[dict[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
        """The groups, each split by how many layers its parameters stand below the last one."""
        if self.layer_decay == 1:
            return groups
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        depth = 1 + max((layer for name in names.values() if (layer := layer_of(name)) is not None), default=-1)
        found: dict[tuple[int, int], dict[str, Any]] = {}
        for number, group in enumerate(groups):
            for parameter in group["params"]:
                below = _below(names[id(parameter)], depth)
                here = found.setdefault((number, below), {**group, "params": [], "below": below})
                here["params"].append(parameter)
        return list(found.values())

    def _rule(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        if self.name == "sgd":
            return torch.optim.SGD(groups, lr=self.lr, momentum=_set(self.momentum), nesterov=bool(self.nesterov))
        if self.name == "adafactor":
            # 0.001 is the paper's minimum for the size of the weights. Without it zero weights would never move.
            return torch.optim.Adafactor(groups, lr=self.lr, eps=(_set(self.eps), 1e-3))
        make = {"adam": torch.optim.Adam, "lamb": Lamb}.get(self.name, torch.optim.AdamW)
        return make(groups, lr=self.lr, betas=_set(self.betas), eps=_set(self.eps))


def layer_of(name: str) -> int | None:
    """The number of the layer that a parameter belongs to, from its name; None outside the layers."""
    found = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    return int(found[1]) if found else None


def _below(name: str, depth: int) -> int:
    """How many layers a parameter stands below the last one: tables below all, heads and the final norm below none."""
    layer = layer_of(name)
    if layer is not None:
        return depth - 1 - layer
    return depth if "embedding" in name or name.startswith("positions.") else 0


def decays(parameter: Tensor) -> bool:
    """Whether weight decay and the penalties of `regularise.py` act on a parameter: on matrices only."""
    return parameter.dim() >= 2


def _set(value: Any) -> Any:
    """A setting that the validator must have filled in."""
    assert value is not None
    return value
