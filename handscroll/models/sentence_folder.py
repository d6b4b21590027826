"""The recipe of a sentence encoder in and out: the folder layout of the library sentence-transformers.

`modules.json` lists what is done one after the other: the encoder, a pooling (`1_Pooling/config.json`) and a
normalisation. `sentence_bert_config.json` says how many tokens are read, `config_sentence_transformers.json` holds the
prompts. A GGUF file holds the same files in one key; those of others hold the pooling alone.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from handscroll.base.errors import CheckpointError, ConfigError, nearest
from handscroll.base.gguf import GGUF, is_gguf, read_gguf
from handscroll.base.runs import write_file
from handscroll.models.gguf.side import RECIPE_KEY
from handscroll.models.weights import read_json

MODULES, LENGTH, PROMPTS = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"
# In the order in which sentence-transformers puts several poolings one after the other.
_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "sqrt",
    "pooling_mode_weightedmean_tokens": "",
    "pooling_mode_lasttoken": "last",
}
_SHORT = {"cls": "cls", "max": "max", "mean": "mean", "mean_sqrt_len_tokens": "sqrt", "lasttoken": "last"}
GGUF_POOLINGS = {1: "mean", 2: "cls", 3: "last"}  # as llama.cpp numbers them; 0 is none
USUAL = "1_Pooling/config.json"
_log = logging.getLogger("handscroll.sentences")


@dataclass(frozen=True)
class Sentences:
    """How texts become vectors.

    `length` is the number of tokens at which texts are cut (None: they are not). `refused` says what the folder asks
    for that is not known here; vectors are then refused, and everything else works. `files` are the JSON files as they
    were, by their paths in the folder.
    """

    pooling: str = "mean"
    normalise: bool = True
    length: int | None = None
    lower: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None
    refused: str = ""
    files: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, source: Path) -> "Sentences | None":
        """The recipe of a checkpoint folder or a GGUF file, or None where it has none.

        Raises:
            CheckpointError: a file is damaged, or names a folder outside.
        """
        if is_gguf(source):
            return cls._of_gguf(read_gguf(source))
        if not (source / MODULES).is_file():
            return None
        try:
            files: dict[str, Any] = {MODULES: json.loads((source / MODULES).read_text(encoding="utf-8"))}
        except ValueError as error:
            raise CheckpointError(f"{source / MODULES} is not valid JSON: {error}") from None
        place = _place(_modules(files[MODULES], source))
        for name in (LENGTH, PROMPTS, *([place] if place else [])):
            if (source / name).is_file():
                files[name] = read_json(source / name)
        return cls._of(files, source)

    @classmethod
    def _of_gguf(cls, file: GGUF) -> "Sentences | None":
        number, files = file.metadata.get(f"{file.architecture}.pooling_type", 0), file.table(RECIPE_KEY)
        known = GGUF_POOLINGS.get(number) if type(number) is int else None
        if not files and (known or number == 0):
            return None if known is None else cls(known)
        if not files:  # a recipe that is refused, also when it is saved
            files = {MODULES: [{"path": "1_Pooling", "type": "Pooling"}], USUAL: {"pooling_mode": f"type {number}"}}
            return cls._of(files, file.path)
        found = cls._of(files, file.path)
        if found.pooling != known:
            raise ConfigError(
                f"{file.path}: pooling_type {number} contradicts '{RECIPE_KEY}', which says {found.pooling}; remove "
                "one of the two keys, or export the file again"
            )
        return found

    @classmethod
    def _of(cls, files: dict[str, Any], source: Path) -> "Sentences":
        """The recipe in the contents of files."""
        modules = _modules(files.get(MODULES), source)
        files = {name: files[name] for name in (MODULES, LENGTH, PROMPTS, _place(modules)) if name in files}
        if wrong := [name for name, content in files.items() if name != MODULES and not isinstance(content, dict)]:
            raise CheckpointError(f"{source / wrong[0]} holds no JSON object; copy it again")
        others = [kind for kind, _ in modules if kind not in ("Transformer", "Pooling", "Normalize")]
        kinds, pooling = dict(modules), files.get(_place(modules), {})
        modes, unknown = _modes(pooling)
        about, said = files.get(LENGTH, {}), files.get(PROMPTS, {})
        length = about.get("max_seq_length")
        if length is not None and (type(length) is not int or length < 1):
            raise CheckpointError(f"{source / LENGTH}: max_seq_length is {length!r}; it must be a number of tokens")
        prompts = said.get("prompts") or {}
        if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
            raise CheckpointError(f"{source / PROMPTS}: 'prompts' must give a text for each name")
        if any(prompts.values()) and pooling.get("include_prompt") is False:
            unknown.append("a pooling without the prompt")
        refused = ", ".join([*(f"the module '{kind}'" for kind in others), *unknown])
        return cls(
            "+".join(modes) or "mean",
            "Normalize" in kinds,
            length,
            bool(about.get("do_lower_case", False)),
            prompts,
            said.get("default_prompt_name"),
            refused,
            files,
        )

    def prompted(self, texts: Iterable[str], prompt: str | None) -> list[str] | str:
        """The texts as the encoder reads them, behind the prompt of that name.

        Raises:
            ConfigError: there is no such prompt, or the recipe asks for what is not known here.
        """
        if isinstance(texts, str):  # refused by whoever expects several
            return texts
        if self.refused:
            raise ConfigError(f"the folder's vectors need {self.refused}, which is not known here: use another encoder")
        name = self.default if prompt is None else prompt
        if name is not None and name not in self.prompts:
            raise ConfigError(f"unknown prompt '{name}': {nearest(name, self.prompts)}")
        before = "" if name is None else self.prompts[name]
        if not self.files:
            return list(texts)
        found = [(before + text).strip() if isinstance(text, str) else text for text in texts]
        return [text.lower() for text in found] if self.lower else found

    def cut(self, rows: Sequence[Sequence[int]], frame: int) -> list[Sequence[int]]:
        """The rows of tokens, cut so that they have at most `length` tokens with a frame of `frame` tokens."""
        if self.length is None:
            return list(rows)
        most = max(0, self.length - frame)
        long = sum(len(row) > most for row in rows)
        if long:
            _log.warning(
                "%d of %d texts have more than %d tokens and are cut there, as the checkpoint's %s says; windows=True "
                "reads them whole",
                *(long, len(rows), self.length, LENGTH),
            )
        return [row[:most] for row in rows]

    def reaching(self, length: int) -> "Sentences":
        """The recipe for a model that was lengthened to `length` tokens."""
        return self if self.length is None else replace(self, length=max(length, self.length))

    def contents(self, width: int) -> dict[str, Any]:
        """The JSON files that sentence-transformers reads, by their paths in the folder.

        A recipe that is not known here stays as it was, so that it is refused again.
        """
        found = dict(self.files)
        about = found.pop(LENGTH, {"do_lower_case": self.lower})
        found[LENGTH] = about if self.length is None else {**about, "max_seq_length": self.length}
        if self.refused:
            return found
        given = dict(_modules(self.files.get(MODULES, []), Path()))
        kinds = ["Transformer", "Pooling"] + ["Normalize"] * self.normalise
        paths = {kind: given.get(kind, f"{number}_{kind}" if number else "") for number, kind in enumerate(kinds)}
        found[MODULES] = [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for number, (kind, path) in enumerate(paths.items())
        ]
        if (place := f"{paths['Pooling']}/config.json") not in found:
            modes = self.pooling.split("+")
            flags = {key: mode in modes for key, mode in _POOLINGS.items() if mode}
            found[place] = {"word_embedding_dimension": width, **flags}
        return found

    def metadata(self, architecture: str, width: int) -> dict[str, Any]:
        """The keys of a GGUF file that say the same; llama.cpp reads the pooling alone.

        Raises:
            ConfigError: a GGUF file cannot say it.
        """
        number = next((number for number, name in GGUF_POOLINGS.items() if name == self.pooling), None)
        if self.refused or number is None:
            raise ConfigError(
                f"the vectors of this model need {self.refused or f'the pooling {self.pooling}'}, and GGUF files hold "
                f"only {', '.join(GGUF_POOLINGS.values())}: save a folder"
            )
        recipe = json.dumps(self.contents(width), ensure_ascii=False)
        return {f"{architecture}.pooling_type": number, RECIPE_KEY: recipe}


def write_recipe(recipe: Sentences | None, folder: Path, width: int) -> None:
    """Write a recipe beside the weights, so that sentence-transformers loads the folder; None: the folder has none.

    What another recipe left in the folder is removed.
    """
    contents = {} if recipe is None else recipe.contents(width)
    for name in {MODULES, LENGTH, PROMPTS, USUAL} - contents.keys():
        (folder / name).unlink(missing_ok=True)
    usual = (folder / USUAL).parent
    if usual.is_dir() and not any(usual.iterdir()):
        usual.rmdir()
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_file(folder / name, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    for kind, path in _modules(contents.get(MODULES, []), folder):
        if kind in ("Transformer", "Pooling", "Normalize"):
            (folder / path).mkdir(parents=True, exist_ok=True)
        else:
            _log.warning("%s: the module '%s' is not written; copy '%s' of the first model", folder, kind, path)


def _modules(listed: Any, source: Path) -> list[tuple[str, str]]:
    """The (kind, path) of each module, in order."""
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise CheckpointError(f"{source / MODULES} holds no list of modules; copy it again")
    found = []
    for one in listed:
        kind, path = str(one.get("type", "")).rpartition(".")[2], str(one.get("path", ""))
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise CheckpointError(f"{source / MODULES} names the folder '{path}', which lies outside")
        found.append((kind, path))
    return found


def _place(modules: list[tuple[str, str]]) -> str:
    """The path of the file that tells the pooling; "" where there is none."""
    path = dict(modules).get("Pooling")
    return f"{path}/config.json" if path else ""


def _modes(pooling: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The poolings of a configuration, and those that are not known here."""
    named = pooling.get("pooling_mode")
    if named is not None:  # the form of newer versions
        names = named if isinstance(named, list | tuple) else [named]
        given = {str(name): _SHORT.get(str(name), "") for name in names}
    else:
        given = {key: mode for key, mode in _POOLINGS.items() if pooling.get(key)}
    return [mode for mode in given.values() if mode], [
        f"the pooling '{key}'" for key, mode in given.items() if not mode
    ]
