"""Makes workloads from a recipe (one for each stage) or from a checkpoint folder. It never reads weights."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from handscroll.base.errors import ConfigError
from handscroll.base.spec import ModelSpec
from handscroll.base.workload import MEMORY, Workload
from handscroll.cache.table import DEFAULT, footprint
from handscroll.data.masking import Masking
from handscroll.text.blanks import NAMES


def recipe_workloads(recipe: Any, config: Any = None, data_bytes: int | None = None) -> list[Workload]:
    """One workload for each stage of a training recipe (`train/recipe.py: Recipe`), in order.

    `config` is the model's configuration. Without it the configuration comes from the recipe, with the largest
    vocabulary that the tokenizer can have. `data_bytes` is the size of the tokenized text in memory. The default is the
    size of the text files.
    """
    loop = recipe.loop_settings()
    longest = max(stage.length for stage in recipe.stages)
    spec = recipe_spec(recipe, longest) if config is None else config.spec
    if data_bytes is None:
        data_bytes = 0 if recipe.text is None else sum(path.stat().st_size for path in recipe.text.paths())
    common = {
        "spec": spec,
        "lora": 0 if recipe.lora is None else recipe.lora.rank,
        "lora_targets": 4 if recipe.lora is None else len(recipe.lora.targets),
        "tables": recipe.lora is not None and recipe.lora.tables,
        "precision": loop.precision,
        "optimizer": recipe.optimizer.name,
        "average": bool(loop.average),
        "dropout": bool(recipe.regularise.dropout),
        "keep": loop.keep,
        "best": bool(loop.patience),
        "data_bytes": data_bytes,
        "made": config is not None,
        "threads": recipe.threads,
        "device": recipe.device,
        "frozen": "float32" if recipe.lora is None else recipe.lora.frozen,
    }
    common["targets"] = recipe.objective.share(recipe.mixed)
    memory = recipe.memory
    common |= {name: getattr(memory, name) for name in MEMORY}
    if memory.strategy == "recurrent":  # it keeps as much as the plain step of one chunk
        common |= {"strategy": "plain", "chunk": 0}
    found = []
    for stage in recipe.stages:
        micro = stage.micro or stage.rows
        mixed = [recipe.data[name] for name in stage.mix]
        kinds = {getattr(data, "sampling", data.kind) for data in mixed}
        packed = bool({"packed", "labelled", "blanks"} & kinds) or any(getattr(data, "pairs", 1) > 1 for data in mixed)
        length = min(stage.length, memory.chunk) if memory.strategy == "recurrent" else stage.length
        own = {"length": length, "rows": micro, "micro": stage.rows // micro, "steps": stage.steps}
        if spec.encoder:  # spans cut from a text go to the target; each leaves a sentinel on both sides
            cut, spans = recipe.objective.counts(max(2, length))
            own |= {"read": (length - cut + spans + 1) / length, "written": (cut + spans + 1) / length}
        found.append(Workload.model_validate(common | own | {"packed": packed}))
    return found


def recipe_spec(recipe: Any, longest: int) -> ModelSpec:
    """The spec of a recipe's model before its tokenizer exists. A tokenizer to be trained counts with its full size.

    Raises:
        ConfigError: the family does not have these sizes, or they do not fit together. The run raises the same error.
    """
    if recipe.model.path is not None:
        return checkpoint_spec(recipe.model.path)
    from handscroll.models.new import About, new_config

    about = About(_tokenizer(recipe.tokenizer), longest, recipe.objective.labels(recipe.mixed))
    return new_config(recipe.model.family, recipe.model.sizes, about).spec


def checkpoint_spec(source: str) -> ModelSpec:
    """The spec of a checkpoint folder or hub id."""
    return _config(source).spec


def _config(source: str) -> Any:
    from handscroll.models.locate import locate
    from handscroll.models.weights import read_config

    _, config = read_config(Path(locate(source)))
    return config


def precision_of(source: str, dtype: str) -> str:
    """The name of a dtype. For "auto" it is the dtype in which the checkpoint is loaded."""
    from handscroll.models.locate import locate
    from handscroll.models.weights import loaded_dtype

    name = str(loaded_dtype(Path(locate(source)))).removeprefix("torch.") if dtype == "auto" else dtype
    return "bfloat16" if name == "float16" else name  # a plan counts bytes, and both have two


def checkpoint_workload(source: str, values: dict[str, Any], lora: int = 0) -> Workload:
    """A workload on a checkpoint. `lora` is the rank, 0 for no LoRA.

    Raises:
        ConfigError: this kind of checkpoint cannot do the workload.
    """
    config = _config(source)
    _check_possible(config, values.get("kind", ""))
    spec = config.spec
    if values.get("kind") == "extend":
        spec = spec.reaching(values["length"])
    if spec.reads == "both":
        values = {"targets": Masking.rate} | values
    if values.get("kind") in ("generate", "serve"):
        kept = footprint(DEFAULT, config, cache_itemsize(source, values["precision"])).model_dump()
        values = {"stored": _stored(source), "rounded": _rounded(source), "cache": kept} | values
    return Workload.parse({"spec": spec, "lora": lora} | values, "plan")


def reading_workload(source: str, workload: Workload) -> Workload:
    """A workload on the weights as `load` leaves them for reading: in the dtype or the number formats of the files."""
    precision = precision_of(source, "auto")
    kept = footprint(DEFAULT, _config(source), cache_itemsize(source, precision))
    return workload.changed(precision=precision, stored=_stored(source), rounded=_rounded(source), cache=kept)


def cache_itemsize(source: str, precision: str) -> int:
    """Bytes of a number in the cache of a checkpoint on a CPU, as `Model.cache_dtype` decides."""
    return 2 if precision in ("bfloat16", "float16") or _rounded(source) else 4


def _rounded(source: str) -> bool:
    """Whether a file has weights in formats of few bits, which are kept."""
    from handscroll.base.gguf import is_gguf
    from handscroll.models.gguf.load import FLOATS
    from handscroll.models.locate import locate
    from handscroll.models.weights import weight_sizes

    path = Path(locate(source))
    return is_gguf(path) and any(name not in FLOATS for name in weight_sizes(path)[1].split("/"))


def _stored(source: str) -> int:
    """Bytes of the weights of a file whose number formats are kept; 0 where they become numbers of one dtype."""
    from handscroll.base.gguf import is_gguf
    from handscroll.models.locate import locate
    from handscroll.models.weights import weight_sizes

    path = Path(locate(source))
    return weight_sizes(path)[2] if is_gguf(path) else 0


def _check_possible(config: Any, kind: str) -> None:
    """Refuse plans for workloads that the command itself refuses for any amount of memory."""
    family = f"family '{config.family}'"
    spec = config.spec
    if kind == "extend" and (why := spec.positions[0].unlengthened):
        raise ConfigError(f"{family} {why}")
    if kind == "extend" and spec.encoder:
        raise ConfigError(
            f"{family} is tuned by handscroll train (objective = 'span-corruption') after handscroll extend: plan that "
            "recipe with handscroll plan train"
        )
    if kind == "extend" and not spec.predicts:
        raise ConfigError(f"{family} without a masked-LM head cannot be tuned, because it has no loss")
    if kind == "serve" and (spec.recurrent or spec.bias or spec.reads == "blanks"):
        raise ConfigError(f"the engine has no key blocks for {family}; use handscroll generate, and plan that")


def _tokenizer(settings: Any) -> Any:
    """A recipe's tokenizer. If it is not trained yet, a stand-in with the values that a new model reads.

    The ids of the stand-in do not change any size.
    """
    if settings.train is not None:
        return SimpleNamespace(vocab_size=settings.train.vocab, bos=None, eos=0, pad=0, words=NAMES)
    if settings.path is None:
        raise ConfigError("recipe: tokenizer needs a path or settings to train one, since the model is new")
    from handscroll.text.tokenizer import Tokenizer

    return Tokenizer.load(os.fspath(settings.path))
