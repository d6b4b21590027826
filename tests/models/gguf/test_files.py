"""GGUF files of small models: what is read, what is refused, what comes back. All files are made here."""

import json

import numpy as np
import pytest
import torch

import handscroll
from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.base.gguf import found_in, read_gguf
from handscroll.lm import LM
from handscroll.models.gguf.save import save_gguf
from handscroll.models.locate import locate
from handscroll.models.weights import load_model, read_config
from handscroll.nn.quantised import Quantised, QuantisedTable
from handscroll.text.gguf_out import metadata_of
from handscroll.text.tokenizer import Tokenizer
from tests.conformance.families import FORMS
from tests.models.gguf.material import changed
from tests.text.small import trained

TOKENIZER = trained("bpe")
SIZES = {"vocab_size": 300, "hidden_size": 256, "intermediate_size": 256, "head_dim": 32, "num_attention_heads": 8}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "truncate": False}
TOKENS = torch.tensor([[3, 50, 97, 200, 4, 4, 120]])


def model(name: str = "llama", dtype: torch.dtype = torch.float32, **changes):
    form = FORMS[name]
    return form.build(dtype, foreign=form.foreign | SIZES | {"bos_token_id": None, "eos_token_id": 299} | changes)


@pytest.fixture(scope="module")
def lm() -> LM:
    return LM(model(), TOKENIZER, "test")


@torch.no_grad()
@pytest.mark.parametrize(("kind", "apart"), [("f32", 0.0), ("bf16", 0.0), ("f16", 0.0), ("q8_0", 0.0), ("q4_0", 0.0)])
def test_every_type_of_weights_is_read_as_it_was_written(kind, apart, tmp_path, lm):
    """What is written once and read is written again to the same bytes, and quantised matrices stay what they are."""
    file = lm.export_gguf(tmp_path / "a.gguf", kind)
    floats = load_model(file, torch.float32)
    again = LM(floats, TOKENIZER, "again").export_gguf(tmp_path / "b.gguf", kind)
    assert again.read_bytes() == file.read_bytes()
    if kind == "f32":
        assert all(torch.equal(one, floats.state_dict()[name]) for name, one in lm.model.state_dict().items())
    stored = handscroll.load(file, dtype="float32")
    quantised = [one for one in stored.model.modules() if isinstance(one, Quantised)]
    assert bool(quantised) == kind.startswith("q")
    assert any(isinstance(one, QuantisedTable) for one in quantised) == kind.startswith("q")
    near = 5e-3 if quantised else 1e-4  # compiled products over stored bytes round what comes in to 16 bits
    assert (stored.model(TOKENS) - floats(TOKENS)).abs().max() < near
    assert stored.tokenizer.encode("the fox") == TOKENIZER.encode("the fox")


def test_the_gguf_library_dequantises_what_is_written_to_the_same_numbers(tmp_path, lm):
    import gguf

    file = lm.export_gguf(tmp_path / "a.gguf", "q4_0")
    ours = load_model(file).state_dict()
    for tensor in gguf.GGUFReader(file).tensors:
        if tensor.name == "blk.1.ffn_up.weight":
            theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert torch.equal(ours["layers.1.mlp.up.weight"], torch.from_numpy(theirs.copy()))


@pytest.mark.parametrize(
    ("scaling", "context"),
    [
        ({"rope_type": "linear", "factor": 4.0}, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.3}, 256),
        (YARN | {"beta_fast": 16.0, "beta_slow": 0.35, "attention_factor": 1.0693}, 256),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "original_max_position_embeddings": 64,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
            256,
        ),
        (
            {
                "rope_type": "longrope",
                "original_max_position_embeddings": 64,
                "factor": 4.0,
                "short_factor": [1.0] * 16,
                "long_factor": [float(number) for number in range(1, 17)],
            },
            256,
        ),
    ],
)
def test_scaled_positions_come_back(scaling, context, tmp_path):
    long = model(max_position_embeddings=context, rope_scaling=scaling, rope_theta=500.0)
    file = save_gguf(long, metadata_of(TOKENIZER, 300, (299,)), tmp_path / "a.gguf", "f32", {})
    again = load_model(file)
    assert (again(TOKENS, length=250) - long(TOKENS, length=250)).abs().max() < 1e-4
    assert (again.config.context, again.config.trained) == (256, 64)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("mistral-window", {}, "windows"),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "dynamic-ntk"),
        (
            "qwen2",
            {"rope_scaling": YARN, "max_position_embeddings": 256},
            "yarn",
        ),
        ("lstm", {}, "lstm"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_not_exported(name, changes, said, tmp_path):
    form = FORMS[name]
    small = form.build(torch.float32, foreign=form.foreign | changes)
    with pytest.raises(ConfigError, match=said):
        save_gguf(small, {}, tmp_path / "a.gguf", "f32", {})
    assert not list(tmp_path.iterdir())


def test_what_is_not_a_type_or_a_name_is_refused(tmp_path, lm):
    with pytest.raises(ConfigError, match="q8_0"):
        lm.export_gguf(tmp_path / "a.gguf", "q8")
    with pytest.raises(ConfigError, match=r"\.gguf"):
        lm.export_gguf(tmp_path / "a.bin")
    large = LM(model(), TOKENIZER, "test")
    with torch.no_grad():
        large.model.layers[0].mlp.up.weight[0, 0] = 1e6
    with pytest.raises(ConfigError, match="float16"):
        large.export_gguf(tmp_path / "a.gguf", "f16")


def test_provenance_template_and_end_tokens_are_kept(tmp_path):
    tokenizer = Tokenizer(TOKENIZER.source, {**TOKENIZER.settings, "chat_template": "{{ messages }}"})
    made = LM(model(eos_token_id=[299, 3]), tokenizer, "test", {"trained": 32, "made_by": "a test"})
    again = handscroll.load(made.export_gguf(tmp_path / "a.gguf"))
    assert again.provenance == made.provenance and again.trained == 32
    assert again.tokenizer.settings["chat_template"] == "{{ messages }}"
    assert set(again.model.config.eos) == {299, 3}


def test_a_yarn_of_other_ramps_is_factors_that_must_follow_from_what_is_said(tmp_path):
    long = model(max_position_embeddings=256, rope_scaling=YARN | {"beta_fast": 16.0}, rope_theta=500.0)
    file = save_gguf(long, metadata_of(TOKENIZER, 300, (299,)), tmp_path / "a.gguf", "f32", {})
    key = "llama.rope.handscroll"
    said = json.loads(read_gguf(file).metadata[key])
    for wrong in (said | {"beta_slow": 0.25}, said | {"attention_factor": 1.3}):
        with pytest.raises(CheckpointError, match="contradict"):
            read_config(changed(tmp_path / "b.gguf", file, {key: json.dumps(wrong)}))
    with pytest.raises(CheckpointError, match="not JSON"):
        read_config(changed(tmp_path / "b.gguf", file, {key: "{"}))


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"llama.attention.clamp_kqv": 8.0}, "llama.attention.clamp_kqv"),
        ({"llama.expert_count": 8}, "expert_count"),
        ({"llama.rope.dimension_count": 16}, "rope.dimension_count"),
        ({"llama.rope.scaling.type": "spiral"}, "spiral"),
        ({"general.architecture": "mamba"}, "mamba"),
        ({"adapter.type": "lora"}, "adapter.type"),
    ],
)
def test_metadata_that_may_change_the_model_is_refused_by_name(metadata, said, tmp_path, lm):
    file = lm.export_gguf(tmp_path / "a.gguf")
    with pytest.raises(ConfigError, match=said):
        read_config(changed(tmp_path / "b.gguf", file, metadata))


def test_tensors_are_all_there_and_all_used(tmp_path, lm):
    file = lm.export_gguf(tmp_path / "a.gguf")
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_up\.weight"):
        load_model(changed(tmp_path / "b.gguf", file, without=("blk.1.ffn_up.weight",)))
    with pytest.raises(CheckpointError, match=r"blk\.9\.ffn_up\.weight"):
        load_model(changed(tmp_path / "c.gguf", file, tensors={"blk.9.ffn_up.weight": np.zeros((4, 4), np.float32)}))
    with pytest.raises(CheckpointError, match="shape"):
        load_model(changed(tmp_path / "d.gguf", file, {"llama.feed_forward_length": 128}))
    assert load_model(changed(tmp_path / "e.gguf", file, {"general.author": "nobody"})).config == lm.model.config


def test_damaged_files_are_named(tmp_path, lm):
    raw = lm.export_gguf(tmp_path / "a.gguf").read_bytes()
    for name, content, said in (
        ("empty", b"", "empty"),
        ("other", b"PK\x03\x04" + raw[4:], "not a GGUF file"),
        ("old", raw[:4] + b"\x01" + raw[5:], "version 1"),
        ("short", raw[:200], "cut short"),
        ("shorter", raw[:-1000], "cut short"),
    ):
        (tmp_path / f"{name}.gguf").write_bytes(content)
        with pytest.raises(CheckpointError, match=said):
            load_model(tmp_path / f"{name}.gguf")


def test_a_split_model_is_one(tmp_path, lm):
    import gguf

    whole = read_gguf(lm.export_gguf(tmp_path / "whole.gguf", "f32"))
    tensors = list(gguf.GGUFReader(whole.path).tensors)
    from handscroll.models.gguf.save import _add

    for number in range(2):
        part = gguf.GGUFWriter(tmp_path / f"m-{number + 1:05d}-of-00002.gguf", "llama")
        keys = {key: value for key, value in whole.metadata.items() if key != "general.architecture"}
        for key, value in (keys if number == 0 else {}).items():
            _add(part, key, value)
        for key, value, width in (("no", number, 16), ("count", 2, 16), ("tensors.count", len(tensors), 32)):
            (part.add_uint16 if width == 16 else part.add_int32)(f"split.{key}", value)
        for tensor in tensors[number::2]:
            part.add_tensor(tensor.name, np.array(tensor.data))
        part.write_header_to_file()
        part.write_kv_data_to_file()
        part.write_tensors_to_file()
        part.close()
    for file in sorted(tmp_path.glob("m-*.gguf")):
        again = load_model(file).state_dict()
        assert all(torch.equal(one, again[name]) for name, one in lm.model.state_dict().items())
    whole.path.unlink()
    assert locate(tmp_path) == found_in(tmp_path) == tmp_path / "m-00001-of-00002.gguf"
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(CheckpointError, match="m-00002-of-00002"):
        load_model(tmp_path / "m-00001-of-00002.gguf")


def test_a_folder_of_several_models_is_ambiguous(tmp_path, lm):
    lm.export_gguf(tmp_path / "a.gguf")
    lm.export_gguf(tmp_path / "b.gguf")
    with pytest.raises(CheckpointError, match=r"a\.gguf, b\.gguf"):
        locate(tmp_path)


def test_float_weights_are_views_of_the_file(tmp_path, lm):
    """Of a GGUF file and of a folder: nothing is copied, and what is trained never reaches the file."""
    lm.save(tmp_path / "folder")
    for source in (lm.export_gguf(tmp_path / "a.gguf", "f32"), tmp_path / "folder"):
        file = source / "model.safetensors" if source.is_dir() else source
        before, loaded = file.read_bytes(), load_model(source)
        weight = loaded.layers[0].mlp.up.weight
        assert weight.untyped_storage().nbytes() == len(before)
        with torch.no_grad():
            weight += 1.0
        assert file.read_bytes() == before


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_dtype_auto_is_what_is_stored(stored, tmp_path):
    """Of float16 on a CPU it is float32, which holds the same numbers."""
    half = LM(model(dtype=getattr(torch, stored)), TOKENIZER, "test")
    half.save(tmp_path / "folder")
    kind = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[stored]
    wanted = torch.float32 if stored == "float16" else getattr(torch, stored)
    for source in (tmp_path / "folder", half.export_gguf(tmp_path / "a.gguf", kind)):
        again = handscroll.load(source)
        assert again.model.dtype is wanted
        assert torch.equal(again.model.embedding.weight.float(), half.model.embedding.weight.float())
        assert handscroll.load(source, dtype="float64").model.dtype is torch.float64


def test_quantised_weights_are_not_saved_as_floats_in_silence(tmp_path, lm):
    file = lm.export_gguf(tmp_path / "a.gguf", "q8_0")
    stored = handscroll.load(file)
    stored.save(tmp_path / "rounded")
    again = handscroll.load(tmp_path / "rounded")
    ids = torch.arange(20)[None]
    assert again.model.layers[0].mlp.up.format.name == "Q8_0"
    assert torch.equal(again.model(ids), stored.model(ids))
    handscroll.load(file, weights="float").save(tmp_path / "folder")
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert config["model_type"] == "llama" and config["torch_dtype"] == "float32"
