"""Hostile folders and files: every loader answers with its model, or with an error that a user can act on."""

import json
import random
import struct

import pytest
import torch

from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.lm import load
from handscroll.models.describe import facts
from handscroll.models.gguf.save import save_gguf
from handscroll.models.weights import load_model, read_config, save_model
from handscroll.text.gguf_out import metadata_of
from tests.conformance.families import FORMS
from tests.hostile import VALUES, all_answered, damaged, places, put, sample, text_of
from tests.text.small import trained

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 32.0}
SOME = pytest.param(20, id="some")
ALL = pytest.param(None, marks=pytest.mark.long, id="all")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each form, made when it is asked for."""

    def made(name):
        folder = tmp_path_factory.mktemp("hostile")
        save_model(FORMS[name].build(torch.float32), folder)
        return folder

    return made


@pytest.mark.parametrize("count", [SOME, ALL])
@pytest.mark.parametrize("name", FORMS)
def test_any_value_at_any_key_of_a_config(folders, name, count):
    folder = folders(name)
    path = folder / "config.json"
    plain = json.loads(path.read_text())
    if "rope_theta" in plain:
        plain["rope_scaling"] = YARN
    more = dict.fromkeys(FORMS[name].kind.keys - plain.keys())
    cases = [(place, value) for place in places(plain | more) for value in VALUES]

    def act(case):
        place, value = case
        path.write_text(json.dumps(put(plain | {place[0]: (plain | more)[place[0]]}, place, value)))
        facts(folder)
        load_model(folder)

    all_answered(sample(cases, count), act)


@pytest.mark.parametrize(
    "text",
    ['{"model_type": ' + "9" * 5000 + "}", "[" * 100_000, '{"a":' * 100_000, "", "null", "\ufeff{}", '"x"', "{"],
)
def test_a_config_that_breaks_the_parser(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises((CheckpointError, ConfigError)):
        read_config(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
def test_a_folder_in_the_place_of_a_file(folders, name):
    folder = folders("llama")
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    if name.endswith("index.json"):  # beside an index, the one file wins
        (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=name):
        load_model(folder)


HEADERS = [
    ("dtype", "F33"),
    ("dtype", "I64"),
    ("dtype", 5),
    ("dtype", "F16"),
    ("shape", [-1, 48]),
    ("shape", [2**62, 2**62]),
    ("shape", "x"),
    ("shape", [0, 48]),
    ("shape", []),
    ("data_offsets", [0, 2**63]),
    ("data_offsets", [8, 0]),
    ("data_offsets", [-8, 0]),
    ("data_offsets", []),
    ("data_offsets", None),
]


@pytest.mark.parametrize(("key", "value"), HEADERS)
def test_a_safetensors_header_that_lies(folders, key, value):
    folder = folders("llama")
    path = folder / "model.safetensors"
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header["model.norm.weight"][key] = value
    path.write_bytes(text_of(header) + data[8 + size :])
    for read in (load_model, facts):
        all_answered([(key, value)], lambda case, read=read: read(folder))
    with pytest.raises(CheckpointError):
        load_model(folder)


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"a": 1}}, {"weight_map": {"a": ["x"]}}, []])
def test_an_index_that_is_none(folders, index):
    folder = folders("llama")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="index"):
        load_model(folder)


@pytest.mark.parametrize("count", [pytest.param(60, id="some"), pytest.param(4000, marks=pytest.mark.long, id="all")])
def test_any_damage_to_a_safetensors_header(folders, count):
    folder, chance = folders("llama"), random.Random(1)
    path = folder / "model.safetensors"
    data = path.read_bytes()
    head = 8 + struct.unpack("<Q", data[:8])[0]

    def act(case):
        path.write_bytes(damaged(data, chance, head))
        facts(folder)
        load_model(folder)

    all_answered(list(range(count)), act)


@pytest.mark.parametrize("count", [pytest.param(60, id="some"), pytest.param(4000, marks=pytest.mark.long, id="all")])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
def test_any_damage_to_a_gguf_header(tmp_path, name, count):
    tokenizer, form = trained("bpe"), FORMS[name]
    changes = {"vocab_size": tokenizer.vocab_size, "bos_token_id": None, "eos_token_id": 1}
    model = form.build(torch.float32, foreign=form.foreign | changes)
    plain = save_gguf(model, metadata_of(tokenizer, tokenizer.vocab_size, (1,)), tmp_path / "plain.gguf", "f32", {})
    data, chance = plain.read_bytes(), random.Random(2)
    head = data.index(b"token_embd.weight") + 2000

    def act(case):
        path = tmp_path / f"{case % 5}.gguf"
        path.write_bytes(damaged(data, chance, head))
        facts(path)
        load(path)

    all_answered(list(range(count)), act)
