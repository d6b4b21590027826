"""Foreign configurations in and out: the Hugging Face `config.json` of each family.

Each family names the keys that it reads; `keys.py` judges the others and checks the values. Defaults of absent keys are
those of the family's published configuration.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from handscroll.base.errors import ConfigError, nearest
from handscroll.models.classes import architecture, named_head
from handscroll.models.keys import check_keys, check_values, unread
from handscroll.models.model import Decoder

if TYPE_CHECKING:  # side.py imports this file
    from handscroll.models.gguf.side import GGUFSide

Foreign = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One foreign tensor and the names of our tensors in it.

    Several of ours are stacked along their output dimension (a fused projection). `transposed`: the tensor is stored as
    (in, out), as in GPT-2's Conv1D. `heads`: ours are interleaved head by head, for this number of heads. `pairs` (E,
    R): the first R of the E outputs of each head are rotated; the file stores them as adjacent pairs, and we store them
    as halves. `also`: names of the tensor in other files. `plus`: the number that the stored values have added (a
    norm's 1 + w). `gathered`: in the reference library it is no module of its own, but a part of a larger parameter.
    `stacked`: ours lie one behind the other along a dimension of their own, which is the first (experts).
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False
    heads: int = 0
    pairs: tuple[int, int] | None = None
    also: tuple[str, ...] = ()
    plus: float = 0.0
    gathered: bool = False
    stacked: bool = False


class Part(NamedTuple):
    """A module of a layer by our names (several: a fused one), whether it has a bias, and fields of its `Entry`s."""

    ours: str | tuple[str, ...]
    bias: bool = False
    heads: int = 0
    pairs: tuple[int, int] | None = None
    gathered: bool = False
    stacked: bool = False


def layer_entries(layers: int, stem: str, parts: Mapping[str, Part], first: int = 0) -> list[Entry]:
    """The weights and biases of `layers` layers; `parts` are their modules by the names in a file after `stem`."""
    made = []
    for number in range(first, first + layers):
        for theirs, part in parts.items():
            names = [part.ours] if isinstance(part.ours, str) else part.ours
            for kind in ("weight", "bias") if part.bias else ("weight",):
                ours = tuple(f"layers.{number}.{name}.{kind}" for name in names)
                form = {name: getattr(part, name) for name in ("heads", "pairs", "gathered", "stacked")}
                made.append(Entry(f"{stem}.{number}.{theirs}.{kind}", ours, **form))
    return made


def _tied_head(config: Any) -> dict[str, str]:
    return {"lm_head.weight": "embedding.weight"} if config.tied else {}


@dataclass(frozen=True)
class Family:
    """Functions that read, build and write one foreign `model_type`.

    `forms` are small configurations in the format of `config.json`, one for each form of the family ("" is the plain
    one); tests/conformance runs over them. `own`: no other library knows the family, and others refuse its folders;
    families that others know are tested against them. `settle(config, tensor)` reads from the weights what
    `config.json` leaves open; `tensor(name)` is None if absent. `copies(config)` names further foreign tensors that
    files may hold, and which of our tensors each must equal (None: the reference library does not read it). `gguf`
    describes its GGUF files, if llama.cpp supports the family. `keys` are the keys that `read` reads, `also` gives
    other names of them, and `absent` the published values of keys that a file leaves out.
    """

    name: str
    build: Callable[[Any], Decoder]
    read: Callable[[Foreign], Any]
    write: Callable[[Any], Foreign]
    entries: Callable[[Any], list[Entry]]
    forms: Mapping[str, Foreign]
    keys: frozenset[str]
    own: bool = False
    settle: Callable[[Any, Callable[[str], Tensor | None]], Any] | None = None
    copies: Callable[[Any], Mapping[str, str | None]] = _tied_head
    gguf: "GGUFSide | None" = None
    also: Mapping[str, str] = field(default_factory=dict)
    absent: Foreign = field(default_factory=dict)

    def parse(self, foreign: Foreign) -> Any:
        """The configuration that a `config.json` describes.

        Raises:
            ConfigError: a key may bear on the forward pass and is not understood, a value is wrong, or the model needs
                code of its own.
        """
        read = self.keys | self.also.keys()
        check_values(foreign, read)
        known = {key: value for key, value in foreign.items() if key in read or key == "model_type"}
        config = self.read(self.absent | self._renamed(known))
        self._check_form(foreign, config)
        check_keys(foreign, read, self.name)
        return config

    def ignored(self, foreign: Foreign) -> list[str]:
        """The keys of a file that change nothing here."""
        return sorted(unread(foreign, self.keys | self.also.keys()))

    def _renamed(self, foreign: Foreign) -> Foreign:
        """The file with one name for each key."""
        found = {key: value for key, value in foreign.items() if key not in self.also}
        for other, key in self.also.items():
            value = foreign.get(other)
            if value is not None and found.setdefault(key, value) != value:
                raise ConfigError(f"config.json: {other} {value} contradicts {key} {found[key]}; keep one of them")
        return found

    def _check_form(self, foreign: Foreign, config: Any) -> None:
        """Refuse a file that says of itself what the family is not: causal, an encoder-decoder, a class of its own."""
        reads = config.spec.reads
        truths = {"is_causal": reads == "forward", "is_encoder_decoder": reads == "source"}
        if reads != "forward":
            truths |= {"is_decoder": False}
        if reads != "source":
            truths |= {"add_cross_attention": False}
        for key, truth in truths.items():
            if key not in self.keys and foreign.get(key) not in (None, truth):
                raise ConfigError(
                    f"config.json has '{key}' = {foreign[key]!r}, but a model of family '{self.name}' here is one with "
                    f"{str(truth).lower()}: such a model would give other numbers"
                )
        made, named = architecture(foreign), named_head(foreign, self.name)
        if (named not in ("", "none") and config.head is None) or (reads == "source" and made.endswith("EncoderModel")):
            what = "model" if named == "none" else "head"
            raise ConfigError(
                f"config.json names the class {made}, but no {what} of that kind is known for family '{self.name}'"
            )
        ours = _CLASS.split(self.write(config)["architectures"][0])[0]
        if foreign.get("auto_map") and _CLASS.split(made or "?")[0] != ours:
            raise ConfigError(
                f"config.json has 'auto_map' and the class '{made or '?'}', which is not of the family '{self.name}': "
                "the model needs remote code, which is never run"
            )


_CLASS = re.compile(r"For|LMHead|Model|Encoder")  # what follows the family's part of a class name
# Our names of the activations of files; `gelu_fast` is the tanh form, written in another order.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu-tanh",
    "gelu_fast": "gelu-tanh",
    "gelu_pytorch_tanh": "gelu-tanh",
    "relu": "relu",
}
WRITTEN_ACTIVATIONS = {"gelu": "gelu", "gelu-tanh": "gelu_new", "relu": "relu"}


def known_activation(foreign: Foreign, key: str, default: str, name: str) -> str:
    """Our name of the activation of a plain MLP.

    Raises:
        ConfigError: it is not known.
    """
    value = foreign.get(key, default)
    if value not in ACTIVATIONS:
        raise ConfigError(f"{name} with {key} = {value!r}: {nearest(str(value), ACTIVATIONS)}")
    return ACTIVATIONS[value]


def required(foreign: Foreign, key: str, name: str) -> Any:
    if foreign.get(key) is None:
        raise ConfigError(f"config.json of family '{name}' has no '{key}'; it cannot be guessed")
    return foreign[key]


def only(foreign: Foreign, name: str, allowed: Mapping[str, Any]) -> None:
    """Refuse keys that have another value than the only one that is known for the family; an absent key has it."""
    for key, value in allowed.items():
        if foreign.get(key, value) != value:
            raise ConfigError(f"config.json of family '{name}' has {key} = {foreign[key]!r}: only {value!r} is known")


def original_length(config: Any, unused: int = 0) -> Foreign:
    """The key that stores the trained length of a context that was lengthened here.

    Other libraries store this key without reading it. `unused` is the number of rows of a learned table before the
    first position.
    """
    return {} if config.original is None else {"original_max_position_embeddings": config.original + unused}


def end_tokens(value: int | list[int] | None) -> tuple[int, ...]:
    return () if value is None else tuple(value) if isinstance(value, list) else (value,)


def written_ends(ends: tuple[int, ...]) -> int | list[int] | None:
    """`eos_token_id` in the usual form of files: none, a number, or a list of several."""
    return list(ends) if len(ends) > 1 else ends[0] if ends else None
