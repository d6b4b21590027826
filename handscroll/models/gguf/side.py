"""The GGUF description of a family, and the header of a file as its reader sees it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from handscroll.base.errors import CheckpointError, ConfigError, nearest
from handscroll.base.gguf import GGUF
from handscroll.models.foreign import Entry, Foreign
from handscroll.models.keys import LARGEST, LONGEST, short

# Keys of the whole file that change no number or are read with the container (`general.alignment`, `split.*`).
BOOKKEEPING = ("general.", "tokenizer.", "split.", "quantize.", "imatrix.", "handscroll.")
_SIZE = re.compile(r"(length|count|count_kv|sliding_window)$")
_NUMBER = re.compile(r"(epsilon|base|base_swa|factor|scale|softcapping|beta_fast|beta_slow)$")
RECIPE_KEY = "handscroll.sentences"  # the recipe of a sentence encoder, as JSON
# Keys under the name of the architecture that change no logit.
SILENT = frozenset(["vocab_size", "tensor_data_layout", "rope.scaling.finetuned"])


@dataclass(frozen=True)
class Written:
    """The GGUF form of a configuration: keys (without the name of the architecture) and small tensors."""

    keys: dict[str, Any]
    tensors: dict[str, list[float]]


@dataclass(frozen=True)
class GGUFSide:
    """Describes how GGUF files store the models of a family.

    `keys` maps keys of the file (without the name of the architecture) to keys of `config.json`. `read(header)` adds
    the entries that need more than a new name. `write(config, foreign)` gives the keys that `keys` does not, and raises
    ConfigError for models that llama.cpp does not compute. `entries(config)` are the tensors by their names in the
    file.
    """

    architecture: str
    keys: Mapping[str, str]
    read: Callable[["Header"], Foreign]
    write: Callable[[Any, Foreign], Written]
    entries: Callable[[Any], list[Entry]]


class Header:
    """The metadata of a file. It records which keys were read, because a key that was not read may change the model."""

    def __init__(self, file: GGUF):
        self.file = file
        self.prefix = file.architecture + "."
        self.asked: set[str] = set()
        self.tensors: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key (without the name of the architecture); float32 numbers get their original decimals.

        Raises:
            CheckpointError: it is not what the name of the key says (a length, a factor).
        """
        self.asked.add(self.prefix + key)
        value = self.file.metadata.get(self.prefix + key, default)
        wanted = _wrong(key, value)
        if wanted:
            raise CheckpointError(f"{self.file.path}: '{self.prefix}{key}' is {short(value)}; expected {wanted}")
        return shortest(value) if isinstance(value, float) else value

    def need(self, key: str) -> Any:
        """The value of a required key.

        Raises:
            CheckpointError: the file does not have this key.
        """
        value = self.get(key)
        if not value:
            raise CheckpointError(f"{self.file.path} has no '{self.prefix}{key}' (or 0); it cannot be guessed")
        return value

    def only(self, key: str, *allowed: Any) -> None:
        """Check that a key is absent or has one of the `allowed` values.

        Raises:
            ConfigError: the key has another value.
        """
        value = self.get(key, allowed[0])
        if value not in allowed:
            known = " or ".join(map(str, allowed))
            raise ConfigError(f"{self.file.path}: '{self.prefix}{key}' is {value}; only {known} is known")

    def has(self, tensor: str) -> bool:
        return tensor in self.file.tensors

    def rows(self, tensor: str) -> int:
        """The number of rows of a matrix.

        Raises:
            CheckpointError: the file does not have this tensor.
        """
        if tensor not in self.file.tensors:
            raise CheckpointError(f"{self.file.path} has no tensor '{tensor}'")
        return self.file.tensors[tensor].shape[0]

    def vector(self, tensor: str) -> list[float] | None:
        """The numbers of a small float32 tensor, or None."""
        stored = self.file.tensors.get(tensor)
        if stored is None:
            return None
        self.tensors.add(tensor)
        if stored.kind != 0 or len(stored.shape) != 1:
            raise CheckpointError(f"{self.file.path}: '{tensor}' is not a vector of float32 numbers")
        with stored.path.open("rb") as file:
            file.seek(stored.offset)
            raw = file.read(4 * stored.shape[0])
        return [shortest(number) for number in np.frombuffer(raw, "<f4").tolist()]

    def foreign(self, side: GGUFSide, name: str) -> Foreign:
        """The same configuration as a `config.json` of the family `name`.

        Raises:
            ConfigError: a key is unknown.
        """
        found: Foreign = {"model_type": name}
        for key, theirs in side.keys.items():
            value = self.get(key)
            if value is not None:
                found[theirs] = value
        found |= side.read(self)
        self.asked |= {self.prefix + "pooling_type", RECIPE_KEY}  # read with the recipe of a sentence encoder
        known = {key.removeprefix(self.prefix) for key in self.asked}
        for key in self.file.metadata:
            name = key.removeprefix(self.prefix)
            if key in self.asked or key.startswith(BOOKKEEPING) or (name != key and name in SILENT):
                continue
            raise ConfigError(
                f"{self.file.path} has the unknown key '{key}', which may change the model: {nearest(name, known)}"
            )
        return found

    def ignored(self) -> list[str]:
        """The keys that were not read; they change no number."""
        read = (*self.asked, "general.architecture", "general.alignment")
        return [key for key in self.file.metadata if key not in read and not key.startswith(("tokenizer.", "split."))]


def _wrong(key: str, value: Any) -> str:
    """What the value of a key should have been, or nothing."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if _SIZE.search(key) and not (value is None or (number and isinstance(value, int) and 0 <= value <= LONGEST)):
        return "a whole number"
    if _NUMBER.search(key) and not (value is None or (number and 0 <= value <= LARGEST)):
        return "a number"
    return "a text" if key.endswith(".type") and not isinstance(value, str | None) else ""


def shortest(number: float) -> float:
    """The decimal that a float32 number was written from, such as 1e-06 for 9.999999974752427e-07."""
    return float(str(np.float32(number)))


# The keys of a decoder with rotary positions and an RMS norm, and those of its `config.json`.
BASE_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}


def gguf_ends(tied: bool) -> list[Entry]:
    """The tensors of every decoder outside its layers: token table, last norm, and an own head."""
    head = [] if tied else [Entry("output.weight", ("projection.weight",))]
    return [Entry("token_embd.weight", ("embedding.weight",)), Entry("output_norm.weight", ("norm.weight",)), *head]


# The layer of GPT-2 and BLOOM: one fused projection of queries, keys and values, with biases everywhere.
GGUF_LAYER = {
    "attn_norm": "attention_norm",
    "attn_qkv": ("attention.query", "attention.key", "attention.value"),
    "attn_output": "attention.output",
    "ffn_norm": "mlp_norm",
    "ffn_up": "mlp.up",
    "ffn_down": "mlp.down",
}


def gguf_layers(count: int, names: Mapping[str, str | tuple[str, ...]]) -> list[Entry]:
    """The weights and biases of `count` layers, by their names in the file and ours."""
    return [
        Entry(
            f"blk.{number}.{theirs}.{part}",
            tuple(f"layers.{number}.{one}.{part}" for one in ((ours,) if isinstance(ours, str) else ours)),
        )
        for number in range(count)
        for theirs, ours in names.items()
        for part in ("weight", "bias")
    ]
