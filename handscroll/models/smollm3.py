"""SmolLM3 (Hugging Face 2025): a Llama with layers that know no positions (Kazemnejad et al. 2023, arXiv:2305.19466).

By default every fourth layer has none; what is lengthened are the positions of the others.
"""

from typing import Any

import torch
from pydantic import model_validator
from torch import Tensor

from handscroll.base.errors import ConfigError
from handscroll.base.spec import ModelSpec
from handscroll.models import llama
from handscroll.models.foreign import Family, Foreign, only
from handscroll.models.gguf.side import BASE_KEYS, GGUFSide, Written
from handscroll.models.heads import Places, headed
from handscroll.models.positions import read_positions
from handscroll.models.sizes import FULL, SLIDING, windows_by_type
from handscroll.nn.marks import Marks
from handscroll.nn.positions.order import Order
from handscroll.nn.rope import Rotation

NAME = "smollm3"


class SmolLM3Config(llama.LlamaConfig):
    """Sizes and switches of a SmolLM3. `rotates` says of each layer whether it has positions."""

    family: str = NAME
    rotates: tuple[bool, ...]

    @model_validator(mode="after")
    def _one_each(self):
        if len(self.rotates) != self.layers or not any(self.rotates):
            raise ValueError(
                f"no_rope_layers needs a 0 or 1 for each of {self.layers} layers, and a 1 among them; "
                f"got {list(map(int, self.rotates))}"
            )
        return self

    @property
    def spec(self) -> ModelSpec:
        spec = super().spec
        if all(self.rotates):
            return spec
        none = {"positions": 1, "rotated": 0}
        layers = (
            layer if self.rotates[number] else layer.model_copy(update=none) for number, layer in enumerate(spec.layers)
        )
        return spec.model_copy(
            update={"layers": tuple(layers), "positions": (self.positions, Order(trained=self.trained))}
        )


class SmolLM3(llama.Llama):
    """A decoder of the SmolLM3 form."""

    config: SmolLM3Config

    def rotations(self, marks: Marks, length: int | None, like: Tensor) -> tuple[Rotation, ...]:
        """The rotation of the layers with positions, and one by no angle for the others, so that they differ in no
        other way (compiled layers read a table in any case)."""
        (turn,) = super().rotations(marks, length, like)
        return turn, Rotation(torch.ones_like(turn.cosine), torch.zeros_like(turn.sine))


KEYS = llama.KEYS | (llama.WINDOW_KEYS - {"max_window_layers"}) | {"no_rope_layers", "no_rope_layer_interval"}
ABSENT: Foreign = {"max_position_embeddings": 32_768, "bos_token_id": 128_000, "eos_token_id": 128_001}  # as published
BASE = 2_000_000.0  # of the published configuration


def _read(foreign: Foreign) -> SmolLM3Config:
    only(foreign, NAME, llama.SILU)
    values = llama.read_form(foreign, NAME)
    rotates = _rotates(foreign, values["layers"])
    bias = bool(foreign.get("attention_bias", False))
    values |= {
        "rotates": rotates,
        "tied": bool(foreign.get("tie_word_embeddings", True)),
        "norm_eps": foreign.get("rms_norm_eps", 1e-6),
        "attention_bias": bias,
        "output_bias": bias,
        "mlp_bias": bool(foreign.get("mlp_bias", False)),
        "windows": _windows(foreign, rotates),
        "positions": read_positions(foreign, values["head_size"], BASE),
    }
    return SmolLM3Config.parse(values, "config.json")


def _rotates(foreign: Foreign, layers: int) -> list[Any]:
    """Whether each layer has positions: as the file says, or all but every so many."""
    stated, every = foreign.get("no_rope_layers"), foreign.get("no_rope_layer_interval", 4)
    if not isinstance(stated, list | None) or type(every) is not int or every < 1:
        raise ConfigError(
            f"config.json: no_rope_layers is {stated!r} and no_rope_layer_interval {every!r}; expected a list of "
            "0 and 1, one for each layer, and a whole number from 1 up"
        )
    return [(number + 1) % every != 0 for number in range(layers)] if stated is None else stated


def _windows(foreign: Foreign, rotates: list[Any]) -> tuple[int | None, ...]:
    """The window of each layer, if windows are switched on: where `layer_types` says so, else where none rotates."""
    if not foreign.get("use_sliding_window", False) or foreign.get("sliding_window") is None:
        return ()
    types = foreign.get("layer_types") or [FULL if turns else SLIDING for turns in rotates]
    return windows_by_type(types, foreign["sliding_window"], len(rotates))


def _write(config: SmolLM3Config) -> Foreign:
    written = llama.written_form(config, "SmolLM3ForCausalLM") | llama.written_windows(config)
    return written | {
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "no_rope_layers": list(map(int, config.rotates)),
        "pad_token_id": None,  # the reference's own default would be a token of the vocabulary
    }


def _to_gguf(config: SmolLM3Config, foreign: Foreign) -> Written:
    if config.rotates != tuple(_rotates({}, config.layers)):
        raise ConfigError("llama.cpp leaves every fourth layer of a SmolLM3 without positions, and no other one")
    return llama.to_gguf(config, tensors=True)


GGUF = GGUFSide(
    NAME,
    BASE_KEYS,
    lambda header: llama.from_gguf(header, mlp_bias=True, tensors=True),
    _to_gguf,
    lambda config: llama.gguf_entries(config, paired=True),
)
SMALL = llama.SMALL | {"num_hidden_layers": 4, "pad_token_id": None}
FORMS = {
    "": SMALL | {"tie_word_embeddings": True},
    "window": SMALL
    | {"no_rope_layers": [0, 1, 1, 0], "use_sliding_window": True, "sliding_window": 16, "tie_word_embeddings": False},
}
PLACES = Places("SmolLM3", answer_base="transformer.")
FAMILY = headed(Family(NAME, SmolLM3, _read, _write, llama.entries, FORMS, KEYS, absent=ABSENT, gguf=GGUF), PLACES)
