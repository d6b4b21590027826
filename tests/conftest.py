"""Shared real models: small enough to train in seconds, trained once a session."""

import json
import shutil
from pathlib import Path

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

# Shapes in signatures are promises: checked on every call of a test run, before anything is imported.
CHECKED = [
    "nn.attend",
    "nn.pages",
    "nn.rope",
    "nn.norm",
    "nn.mlp",
    "nn.attention",
    "nn.bias",
    "objectives.head",
    "models.llama",
    "models.gpt2",
    "models.bloom",
    "models.t5",
    "models.encoder_decoder",
    "models.glm",
    "models.bert",
    "models.sentences",
]
install_import_hook([f"handscroll.{name}" for name in CHECKED], "beartype.beartype")

# The same examples on every run: what passed once passes again.
hypothesis.settings.register_profile("house", derandomize=True, deadline=None)
hypothesis.settings.load_profile("house")

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"


def shared(name: str) -> Path:
    """A file or folder of the shared data; skips with the reason where it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"shared data is absent: ../shared/data/{name}")
    return path


@pytest.fixture(autouse=True)
def _one_thread():
    """Products this small only wait for a second thread, and two workers share the processors; whatever a test left."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A Llama of 60,000 parameters trained for 30 steps: vocabulary 512, context 64."""
    from handscroll.base.config import read_recipe
    from handscroll.train.recipe import Recipe
    from handscroll.train.start import run_recipe

    recipe = Recipe.parse(read_recipe(ROOT / "recipes" / "tiny" / "llama.toml", ["threads=1"]), "recipe")
    folder = tmp_path_factory.mktemp("tiny")
    run_recipe(recipe, folder)
    return folder / "model"


@pytest.fixture(scope="session")
def stretched_folder(tiny_folder, tmp_path_factory) -> Path:
    """The same model declared good for 400 tokens; what it says past 64 is nonsense."""
    folder = tmp_path_factory.mktemp("stretched") / "model"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 400}), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def babyllama() -> Path:
    """A real checkpoint trained to 256 characters of English stories."""
    return shared("checkpoints/babyllama-256")
