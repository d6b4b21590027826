"""Artefacts that are models, adapters, runs and readings: pickles under many names, and code beside the weights."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from handscroll.base.runs import write_folder
from handscroll.cache.reading.store import Store
from handscroll.cli.session import load_messages
from handscroll.data.sources import TokenSource
from handscroll.data.table.read import read_table
from handscroll.lm import load
from handscroll.models.gguf.save import save_gguf
from handscroll.models.weights import PROVENANCE_KEY
from handscroll.text.gguf_out import metadata_of
from handscroll.text.readers import read
from handscroll.train.checkpoint import load_checkpoint
from handscroll.train.run import write_recipe
from tests.artefacts.room import Act, Room, Zoo, command, each, same, use
from tests.serve import material
from tests.text.documents import write_pdf

ZOO: Zoo = {}

# Pickles: instead of the weights, beside them, and under the names of files of other kinds.


def instead(room: Room, name: str) -> Act:
    room.model("model.safetensors")
    room.file(name, room.pickled(name))
    return lambda: use(room.path)


def beside(room: Room, name: str) -> Act:
    room.model()
    room.file(name, room.pickled(name))
    return lambda: use(room.path)


def disguised(room: Room, name: str) -> Act:
    room.model("tokenizer.json" if name.endswith(".model") else "")
    room.file(name, room.pickled(name))
    return lambda: use(room.path / name if name.endswith(".gguf") else room.path)


def elsewhere(room: Room, case: tuple[dict[str, Any], Callable[[Path], Any]]) -> Act:
    """A folder of other files, in which the pickled ones are marked with None, and what reads it."""
    for name, content in case[0].items():
        room.file(name, room.pickled(name) + b"\n" if content is None else content)
    return lambda: case[1](room.path)


def adapter(room: Room, name: str) -> Act:
    folder = material.adapter(room.path / "adapter")
    if name == "adapter_model.bin":
        (folder / "adapter_model.safetensors").unlink()
    room.file(f"adapter/{name}", room.pickled(name))
    return lambda: use(room.base, adapter=folder)


def resumed(room: Room, files: dict[str, str | None]) -> Act:
    """A run folder with a true manifest, so that only what it holds can be refused."""
    made = {name: room.pickled(name) if text is None else text.encode() for name, text in files.items()}
    write_folder(room.path / "step-000010", made)
    room.file("latest", "step-000010\n")
    return lambda: load_checkpoint(room.path / "step-000010")


STATE = json.dumps({"format": 1, "step": 10, "tied": {}, "state": {"rng": {}, "optimizers": {}}})
INDEX = {"weight_map": {"model.norm.weight": "pytorch_model.bin"}}
each(
    ZOO, "instead", same("pytorch_model.bin", "model.pt", "consolidated.00.pth", "model.ckpt", "model.joblib"), instead
)
BESIDE = "optimizer.pt", "training_args.bin", "rng_state.pth", ".metadata", "tokenizer.pkl", "weights.npy", "a.npz"
each(ZOO, "beside", same(*BESIDE, "model.pkl"), beside)
NAMES = "tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json", "chat_template.jinja"
MORE = "model.safetensors", "model.gguf", "tokenizer.model", "spiece.model", "modules.json", "handscroll.json"
each(ZOO, "disguised", same(*NAMES, *MORE, "special_tokens_map.json", "model.safetensors.index.json"), disguised)
each(
    ZOO, "adapter", same("adapter_model.bin", "adapter_model.safetensors", "adapter_config.json", "head.json"), adapter
)
RUNS: dict[str, dict[str, str | None]] = {
    "optimizer.pt": {"state.json": STATE, "optimizer.pt": None},
    "state.json": {"state.json": None},
    "model.safetensors": {"state.json": STATE, "model.safetensors": None},
    "nothing": {"state.json": '{"format": 1}'},
    "ties": {"state.json": STATE.replace('"tied": {}', '"tied": {"a": {"b": "__reduce__"}}')},
}
each(ZOO, "run", RUNS, resumed)
INSIDE = {"parts/1/about.json": None, "parts/1/tokens.bin": None, "parts/1/manifest.json": "{}", "names/a": None}
TOKENS = {"tokens.npy": None, "index.json": '{"documents": [], "tokenizer": "", "fingerprint": ""}'}
ELSEWHERE: dict[str, Any] = {
    "tokens.npy": (TOKENS, TokenSource.load),
    "chat.json": ({"chat.json": None}, lambda path: load_messages(path / "chat.json")),
    "recipe.json of a run": ({"recipe.json": None}, lambda path: write_recipe(path, {"seed": 1})),
    "records": ({"records.jsonl": None}, lambda path: command("report", path, "--out", path / "report.html")),
    "readings": (INSIDE, lambda path: [shutil.copytree(path, Store(path).folder, dirs_exist_ok=True), *reads(path)]),
    "text": ({"a.txt": None}, lambda path: list(read([path]))),
    "table.parquet": ({"a.parquet": None}, lambda path: read_table([path])),
    "rows.arrow": ({"a.arrow": None}, lambda path: read_table([path])),
    "dataset": (
        {"dataset_info.json": None, "state.json": None, "data.arrow": None},
        lambda path: read_table([path]),
    ),
}


def reads(path: Path) -> Iterator[Any]:
    store = Store(path)
    yield store.names()
    yield list(store.parts())
    yield store.open("1")


each(ZOO, "pickle", ELSEWHERE, elsewhere)


# Code beside the data: modules that a configuration names, and modules that have the names of others.


def remote(room: Room, case: dict[str, Any]) -> Act:
    room.model(**case)
    for name in ("evil.py", "custom_generate/generate.py", "__init__.py"):
        room.file(name, room.code)
    return lambda: use(room.path)


def shadowing(room: Room, name: str) -> Act:
    """The user stands in the folder, and reading a PDF starts a process there."""
    write_pdf(room.model() / "a.pdf", [[(72, 700, "Text")]])
    room.file(f"{name}.py", room.code)
    return lambda: [use(Path()), *read(["a.pdf"])]


EVIL = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
REMOTE: dict[str, Any] = {
    "config": {"config": {"auto_map": EVIL}},
    "trust": {"config": {"auto_map": EVIL, "trust_remote_code": True}},
    "class": {"config": {"auto_map": EVIL, "architectures": ["EvilForCausalLM"]}},
    "family": {"config": {"auto_map": EVIL, "model_type": "evil"}},
    "quantisation": {"config": {"quantization_config": {"quant_method": "evil", "modules": "evil.Evil"}}},
    "tokenizer": {"tokenizer_config": {"auto_map": EVIL, "tokenizer_class": "evil.Evil", "use_fast": False}},
    "generation": {"generation_config": {"custom_generate": "custom_generate", "trust_remote_code": True}},
    "modules": {"modules": [{"idx": 0, "name": "0", "path": "", "type": "evil.Evil"}]},
    "provenance": {"handscroll": {"command": "touch canary", "__reduce__": "evil.Evil"}},
}
each(ZOO, "code", REMOTE, remote)
SHADOWS = "handscroll", "json", "torch", "numpy", "resource", "pypdfium2", "sitecustomize", "conftest", "setup"
each(ZOO, "shadow", same(*SHADOWS, "jinja2", "__main__"), shadowing)


def adapted(room: Room, changes: dict[str, Any]) -> Act:
    folder = material.adapter(room.path / "adapter")
    about = json.loads((folder / "adapter_config.json").read_text())
    room.file("adapter/adapter_config.json", json.dumps(about | changes))
    room.file("adapter/evil.py", room.code)
    return lambda: use(room.base, adapter=folder)


def gguf(room: Room, text: str) -> Act:
    lm = load(room.base)
    keys = metadata_of(lm.tokenizer, lm.model.config.vocab, ()) | {PROVENANCE_KEY: text}
    save_gguf(lm.model, keys, room.path / "model.gguf", "f16", {})
    return lambda: use(room.path)


each(ZOO, "gguf", {"deep": "[" * 200_000, "list": "[]", "code": "__import__('os').system('x')"}, gguf)
MAPPED = {"auto_mapping": {"base_model_class": "Evil", "parent_library": "evil"}}
each(ZOO, "adapter", {"auto_mapping": MAPPED, "peft_type": {"peft_type": "evil.Evil"}}, adapted)
