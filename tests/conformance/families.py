"""Every form of every family of the table: small models of it, ours and the reference library's."""

import copy
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers

from handscroll.models.foreign import Family
from handscroll.models.model import Model
from handscroll.models.table import FAMILIES as TABLE
from handscroll.models.table import family as family_of

SCALINGS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.5, 2.0, 3.0, 4.0],
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


@dataclass(frozen=True)
class Form:
    """One form of a family, as its table entry gives it."""

    family: str
    name: str

    def __str__(self) -> str:
        return f"{self.family}-{self.name}" if self.name else self.family

    @property
    def kind(self) -> Family:
        return family_of(self.family)

    @property
    def foreign(self) -> dict[str, Any]:
        """Its `config.json`."""
        return {"model_type": self.family, **copy.deepcopy(dict(self.kind.forms[self.name]))}

    @cached_property
    def config(self) -> Any:
        return self.kind.parse(self.foreign)

    def scaled(self, scaling: str) -> dict[str, Any]:
        """Its `config.json` with a rotary scaling."""
        rope = copy.deepcopy(SCALINGS[scaling])
        if rope is None:
            return self.foreign
        pairs = getattr(self.config, "rotary_size", 8) // 2
        for key in ("short_factor", "long_factor"):
            if key in rope:
                rope[key] = [rope[key][number * 4 // pairs] for number in range(pairs)]
        own = self.foreign
        if "original_max_position_embeddings" in own:  # the form states it beside its own scaling
            own["original_max_position_embeddings"] = rope.get("original_max_position_embeddings")
        longer = {} if scaling == "dynamic" else {"max_position_embeddings": 256}
        tables = self.kind.write(self.config).get("rope_parameters")
        if tables is not None:  # a table for each kind of layer, of which the first is scaled
            first, *_ = tables
            tables[first] = {"rope_theta": 500.0, **rope}
            kept = {key: value for key, value in own.items() if not key.endswith("rope_theta")}
            return kept | longer | {"rope_parameters": tables}
        return own | longer | {"rope_theta": 500.0, "rope_scaling": rope}

    def build(self, dtype: torch.dtype = torch.float64, seed: int = 0, foreign: dict[str, Any] | None = None) -> Model:
        """A random model of ours, with weights large enough to make attention matter."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = self.kind.build(self.config if foreign is None else self.kind.parse(foreign))
            scatter(model)
        return model.to(dtype).eval()


FORMS = {str(form): form for name in TABLE for form in (Form(name, part) for part in family_of(name).forms)}
# Those that the reference library has and that go on with a text: for tests of decoding.
FAMILIES = [
    name
    for name, form in FORMS.items()
    if form.kind.write(form.config)["architectures"][0].endswith(("ForCausalLM", "LMHeadModel")) and not form.kind.own
]


@torch.no_grad()
def scatter(model: torch.nn.Module) -> None:
    """Random weights; norms and biases near where they begin."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, 0.15)
        else:
            parameter.add_(torch.randn_like(parameter) * 0.1)


def reference_class(folder: Path) -> Any:
    """The class of the reference library that a folder names."""
    return getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])


def reference(name: str, scaling: str = "none", seed: int = 0) -> Any:
    """A random `transformers` model of a form, in eval mode."""
    form = FORMS[name]
    foreign = form.scaled(scaling)
    architecture = form.kind.write(form.config)["architectures"][0]
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(**foreign)
    model = getattr(transformers, architecture)(config).eval()
    scatter(model)
    return model


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def reference_logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    return model(tokens).logits
