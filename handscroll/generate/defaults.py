"""What a checkpoint recommends for its continuations (`generation_config.json`, keys of a GGUF file), in and out."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from handscroll.base.errors import ConfigError
from handscroll.base.gguf import is_gguf, read_gguf
from handscroll.base.runs import write_file
from handscroll.generate.sample import Sampling
from handscroll.models.gguf.side import shortest
from handscroll.models.weights import read_json

FILE = "generation_config.json"
CUTS = ("top_k", "top_p", "min_p")
# Keys that say nothing about the text of one continuation, or are written from the model and its tokenizer.
_SILENT = frozenset(
    """
    _from_model_config transformers_version use_cache do_sample temperature repetition_penalty pad_token_id bos_token_id
    eos_token_id return_dict_in_generate output_attentions output_hidden_states output_scores output_logits
    cache_implementation decoder_start_token_id
""".split()
)
# How llama.cpp names the same settings in the metadata of a GGUF file. Its penalty counts the last 64 tokens, unless a
# further key says how many, and -1 for all, as here.
_GGUF = {"temp": "temperature", **{name: name for name in CUTS}, "penalty_repeat": "repetition_penalty"}
_PREFIX, _LAST = "general.sampling.", "general.sampling.penalty_last_n"


@dataclass(frozen=True)
class Defaults:
    """The settings that a checkpoint recommends, under those that a call gives.

    `foreign` is the content of `generation_config.json`, which is written back; of a GGUF file it holds the settings
    that are not followed under the names that they have there. `temperature` is 0 (greedy) unless the file samples;
    `cuts` are the cut-offs that hold where a temperature is above 0.
    """

    foreign: Mapping[str, Any] = field(default_factory=dict)
    temperature: float = 0.0
    repetition_penalty: float = 1.0
    cuts: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def load(cls, source: Path) -> "Defaults":
        """The defaults of a checkpoint folder or a GGUF file; none where it has none.

        Raises:
            CheckpointError: the file is damaged. ConfigError: a value is out of range.
        """
        if is_gguf(source):
            return cls.parse(_named(read_gguf(source).metadata), str(source))
        file = source / FILE
        return cls.parse(read_json(file), str(file)) if file.is_file() else cls()

    @classmethod
    def parse(cls, foreign: Mapping[str, Any], where: str) -> "Defaults":
        """The defaults of the content of `generation_config.json`; a key that is null is absent."""
        given = {name: value for name, value in foreign.items() if value is not None}
        sampled = given.get("do_sample", False)
        temperature = given.get("temperature", 1.0) if sampled else 0.0
        penalty = given.get("repetition_penalty", 1.0)
        cuts = {name: given[name] for name in CUTS if name in given and (name != "top_k" or given[name] != -1)}
        checked = Sampling.parse({"temperature": 1.0, "repetition_penalty": penalty, **cuts}, where)
        temperature = Sampling.parse({"temperature": temperature}, where).temperature
        return cls(foreign, temperature, checked.repetition_penalty, {name: getattr(checked, name) for name in cuts})

    def ends(self, vocab: int) -> tuple[int, ...]:
        """The end tokens that the file lists; they replace those of `config.json`, as in the reference library.

        Raises:
            ConfigError: they are no token ids. (Ids that the model cannot give end nothing.)
        """
        value = self.foreign.get("eos_token_id")
        listed = value if isinstance(value, list) else [] if value is None else [value]
        if any(type(number) is not int for number in listed):
            raise ConfigError(f"{FILE}: eos_token_id is {value!r}; it must be a token id or a list of them")
        return tuple(dict.fromkeys(number for number in listed if 0 <= number < vocab))

    def under(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The given settings over the defaults; `plain` among them leaves the defaults out."""
        given = dict(settings)
        if given.pop("plain", False):
            return given
        temperature = given.get("temperature", self.temperature)
        cuts = self.cuts if temperature else {}  # they have no effect on greedy decoding
        return {"temperature": temperature, "repetition_penalty": self.repetition_penalty, **cuts, **given}

    def taken(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the defaults that change something and that `settings` leave to them."""
        off = Sampling()
        used = {name: value for name, value in self.under(settings).items() if name not in settings and name != "plain"}
        return {name: value for name, value in used.items() if value != getattr(off, name)}

    def unused(self) -> dict[str, Any]:
        """The settings of the file that are not followed here."""
        known = {*_SILENT, *CUTS}
        return {name: value for name, value in self.foreign.items() if name not in known and value is not None}

    def metadata(self) -> dict[str, Any]:
        """The keys of a GGUF file that say the same."""
        followed = {"temperature": self.temperature, **self.cuts} if self.temperature else {}
        others = {name: value for name, value in self.foreign.items() if name.startswith(_PREFIX)}
        if self.repetition_penalty != 1.0:
            followed["repetition_penalty"] = self.repetition_penalty
            others.setdefault(_LAST, -1)
        return others | {_PREFIX + key: followed[name] for key, name in _GGUF.items() if name in followed}

    def write(self, folder: Path, bos: int | None, ends: tuple[int, ...], pad: int | None) -> None:
        """Write the file back with the model's own tokens; where the checkpoint had none, the folder has none."""
        if not self.foreign:
            (folder / FILE).unlink(missing_ok=True)
            return
        ids = {"bos_token_id": bos, "eos_token_id": list(ends) if len(ends) > 1 else next(iter(ends), None)}
        content = {**self.foreign, **ids}
        if pad is not None and self.foreign.get("pad_token_id") is None:
            content["pad_token_id"] = pad
        write_file(folder / FILE, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def told(settings: Mapping[str, Any]) -> str:
    """Settings as one line, such as "temperature 0.7, top_k 20"."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _named(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in the metadata of a GGUF file, as far as they are followed under the names that they have here."""
    given = {key: _decimal(value) for key, value in metadata.items() if key.startswith(_PREFIX)}
    found = {name: given.pop(_PREFIX + key) for key, name in _GGUF.items() if _PREFIX + key in given}
    if given.get(_LAST) == -1:
        del given[_LAST]
    return ({"do_sample": True} if found.keys() - {"repetition_penalty"} else {}) | found | given


def _decimal(value: Any) -> Any:
    """A float32 number of a GGUF file by the decimals that it was written from."""
    return shortest(value) if isinstance(value, float) else value
