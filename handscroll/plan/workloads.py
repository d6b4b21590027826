"""Workloads from what users give: a recipe (one a stage), a checkpoint folder. Reads configurations, never weights."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from handscroll.base.errors import ConfigError
from handscroll.base.workload import MEMORY, Shape, Workload, recurrent

MASKED = 0.15  # share of tokens that are hidden unless a recipe says otherwise (data/masking.py)


def recipe_workloads(recipe: Any, config: Any = None, data_bytes: int | None = None) -> list[Workload]:
    """One workload for each stage of a training recipe (`train/recipe.py: Recipe`), in order.

    `config` is the model's configuration where it is at hand; else it is read from the recipe, with the vocabulary
    that the tokenizer will have at most. `data_bytes` is the text in memory; four bytes a byte of text unless given.
    """
    loop = recipe.loop_settings()
    longest = max(stage.length for stage in recipe.stages)
    shape = recipe_shape(recipe, longest) if config is None else Shape.of(config)
    if recipe.lora is not None:
        shape = shape.model_copy(update={"lora_rank": recipe.lora.rank, "lora_targets": len(recipe.lora.targets)})
    if data_bytes is None:
        data_bytes = sum(path.stat().st_size for path in recipe.text.paths())
    common = {
        "shape": shape.model_dump(),
        "precision": loop.precision,
        "optimizer": recipe.optimizer.name,
        "average": bool(loop.average),
        "dropout": bool(recipe.regularise.dropout),
        "keep": loop.keep,
        "data_bytes": data_bytes,
        "threads": recipe.threads,
    }
    common["targets"] = recipe.objective.share(recipe.mixed)
    memory = recipe.memory
    common |= {name: getattr(memory, name) for name in MEMORY}
    if memory.rung == "recurrent":  # it keeps no more than the plain step of one chunk
        common |= {"rung": "plain", "chunk": 0}
    found = []
    for stage in recipe.stages:
        micro = stage.micro or stage.rows
        mixed = [recipe.data[name] for name in stage.mix]
        kinds = {getattr(data, "sampling", data.kind) for data in mixed}
        packed = bool({"packed", "labelled", "blanks"} & kinds) or any(getattr(data, "pairs", 1) > 1 for data in mixed)
        length = min(stage.length, memory.chunk) if memory.rung == "recurrent" else stage.length
        own = {"length": length, "rows": micro, "micro": stage.rows // micro, "steps": stage.steps}
        found.append(Workload.model_validate(common | own | {"packed": packed}))
    return found


def recipe_shape(recipe: Any, longest: int) -> Shape:
    """The shape of a recipe's model before its tokenizer exists: trained tokenizers are taken at their full size."""
    if recipe.model.path is not None:
        return checkpoint_shape(recipe.model.path)
    sizes = dict(recipe.model.sizes)
    vocab = sizes.get("vocab") or _vocab(recipe.tokenizer)
    if recipe.model.family == "bert":
        return _bert_shape(sizes | {"vocab": vocab, "context": sizes.get("context", longest)})
    family, names = recipe.model.family, ["layers", "width", "heads", "mlp_width"]
    if family == "lstm":
        names = names[:2]
    elif family == "t5":
        names += ["encoder_layers", "head_size"]
    missing = [name for name in names if name not in sizes]
    if missing:
        raise ConfigError(f"recipe: model.sizes has no {', '.join(missing)}; a new model needs them")
    values = {name: sizes[name] for name in names} | {"vocab": vocab, "family": recipe.model.family}
    if family == "t5":
        own = {"family": "t5", "kv_heads": sizes["heads"], "tied": False, "mlp": "gated-gelu"}
        return Shape.of(SimpleNamespace(**own | sizes | {"vocab": vocab}))
    if family == "lstm":
        return Shape.parse(recurrent(values | {"tied": sizes.get("tied", True)}), "recipe: model.sizes")
    if family == "glm-blank":  # a GPT-2 with two tables
        places = sizes.get("context", longest)
        sizes["context"], values["family"] = places + sizes.get("inside", places), "gpt2"
    heads = sizes["heads"]
    learned = values["family"] == "gpt2"
    values |= {
        "kv_heads": sizes.get("kv_heads", heads),
        "head_size": sizes.get("head_size", sizes["width"] // heads),
        "tied": sizes.get("tied", learned),
        "windows": sizes.get("windows", ()),
        "positions": sizes.get("context", longest) if learned else 0,
        "both_ways": family == "glm-blank",
    }
    return Shape.parse(values, "recipe: model.sizes")


def _bert_shape(sizes: dict[str, Any]) -> Shape:
    from handscroll.models.bert import BertConfig

    return Shape.of(BertConfig.parse(sizes, "recipe: model.sizes"))


def checkpoint_shape(source: str) -> Shape:
    """The shape of a checkpoint folder or hub id."""
    from handscroll.models.weights import locate, read_config

    _, config = read_config(Path(locate(source)))
    return Shape.of(config)


def checkpoint_workload(source: str, values: dict[str, Any], lora: int = 0) -> Workload:
    """A workload on a checkpoint; `lora` is a rank, 0 for none."""
    shape = checkpoint_shape(source).model_dump() | {"lora_rank": lora}
    if values.get("kind") == "extend" and shape["positions"]:
        shape["positions"] = max(shape["positions"], values["length"])
    if shape["encoder"]:
        values = {"targets": MASKED} | values
    return Workload.parse({"shape": shape} | values, "plan")


def _vocab(tokenizer: Any) -> int:
    if tokenizer.train is not None:
        return tokenizer.train.vocab
    if tokenizer.path is None:
        raise ConfigError("recipe: tokenizer needs a path or settings to train one, since the model is new")
    from handscroll.text.tokenizer import Tokenizer

    return Tokenizer.load(os.fspath(tokenizer.path)).vocab_size
