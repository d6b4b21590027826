"""Whole folders: what is in them decides, and what is written back is what came in."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

import handscroll
from handscroll.data.pack import Packed
from handscroll.extend.extend import extension
from handscroll.models.locate import locate
from handscroll.models.weights import load_model
from handscroll.text.tokenizer import Tokenizer
from handscroll.train.rows import Files


def changed(folder: Path, name: str, **values) -> None:
    path = folder / name
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(content | values), encoding="utf-8")


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    shutil.copytree(tiny_folder, tmp_path / "model")
    return tmp_path / "model"


def cast(folder: Path, dtype: torch.dtype) -> None:
    file = folder / "model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})


def dtypes(folder: Path) -> set[str]:
    return {str(tensor.dtype).removeprefix("torch.") for tensor in load_file(folder / "model.safetensors").values()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_folder_is_written_in_the_dtype_that_it_had(folder, tmp_path, dtype):
    name = str(dtype).removeprefix("torch.")
    cast(folder, dtype)
    lm = handscroll.load(folder)
    lm.save(tmp_path / "same")
    extension(lm, 128, "pi").lm.save(tmp_path / "longer")
    for out in ("same", "longer"):
        assert dtypes(tmp_path / out) == {name}
        written = json.loads((tmp_path / out / "config.json").read_text())["torch_dtype"]
        assert written == name
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "same" / "model.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)
    handscroll.load(folder, dtype="float32").save(tmp_path / "named")
    assert dtypes(tmp_path / "named") == {"float32"}


LEFT = {
    "generation_config.json": '{"eos_token_id": [77], "do_sample": true, "temperature": 0.9}',
    "handscroll.json": '{"method": "pi"}',
    "task.json": '{"name": "classify"}',
    "modules.json": '[{"type": "x.Dense", "path": ""}]',
    "1_Pooling/config.json": '{"pooling_mode_cls_token": true}',
    "sentence_bert_config.json": '{"max_seq_length": 8}',
    "config_sentence_transformers.json": '{"prompts": {"query": "q: "}}',
    "special_tokens_map.json": '{"eos_token": "the"}',
    "added_tokens.json": '{"the": 7}',
    "chat_template.jinja": "other",
    "chat_template.json": '{"chat_template": "another"}',
    "additional_chat_templates/tools.jinja": "a third",
}


def test_nothing_of_a_model_that_a_folder_held_is_read_with_the_new_one(folder, tmp_path):
    for name in ("generation_config.json", "handscroll.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    lm, out = handscroll.load(folder), tmp_path / "out"
    for name, text in LEFT.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
    (out / "notes.txt").write_text("mine")
    lm.save(out)
    again = handscroll.load(out)
    assert (again.model.config, again.defaults, again.sentences) == (lm.model.config, lm.defaults, lm.sentences)
    assert (again.provenance, again.tokenizer.settings) == (
        lm.provenance,
        {**again.tokenizer.settings, **lm.tokenizer.settings},
    )
    assert not any((out / name).exists() for name in LEFT) and (out / "notes.txt").is_file()


def test_a_folder_is_saved_into_itself_with_all_that_it_held(folder):
    own = {name: text for name, text in LEFT.items() if name not in ("special_tokens_map.json", "added_tokens.json")}
    for name, text in own.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    lm = handscroll.load(folder)
    lm.save(folder)
    again = handscroll.load(folder)
    assert (again.model.config, again.sentences) == (lm.model.config, lm.sentences)
    assert (folder / "task.json").read_text() == LEFT["task.json"]
    assert (again.provenance, again.tokenizer.settings["chat_template"]) == (
        lm.provenance,
        lm.tokenizer.settings["chat_template"],
    )
    assert again.defaults.temperature == 0.9 and again.model.config.eos == (77,)


def test_numbers_beyond_float16_are_written_as_bfloat16(folder, tmp_path):
    cast(folder, torch.float16)
    lm = handscroll.load(folder)
    with torch.no_grad():
        lm.model.norm.weight[0] = 1e5
    lm.save(tmp_path / "out")
    assert dtypes(tmp_path / "out") == {"bfloat16"}


def test_whole_weights_beside_an_index_are_taken_as_the_reference_library_does(folder, caplog):
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
    expected = load_model(folder).state_dict()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with caplog.at_level(logging.WARNING, logger="handscroll.checkpoints"):
        found = load_model(folder).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert "model.safetensors.index.json" in caplog.text and "not read" in caplog.text


def test_the_limit_of_the_tokenizer_follows_the_lengthened_context(folder, tmp_path):
    changed(folder, "tokenizer_config.json", model_max_length=64)
    cut = {"direction": "Right", "max_length": 64, "strategy": "LongestFirst", "stride": 0}
    changed(folder, "tokenizer.json", truncation=cut)
    lm = handscroll.load(folder)
    extension(lm, 256, "pi").lm.save(tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    spec = json.loads((tmp_path / "out" / "tokenizer.json").read_text(encoding="utf-8"))
    assert (settings["model_max_length"], spec["truncation"]["max_length"]) == (256, 256)
    lm.save(tmp_path / "same")
    assert json.loads((tmp_path / "same" / "tokenizer_config.json").read_text())["model_max_length"] == 64


def test_a_model_without_a_row_for_the_last_added_token_is_loaded(folder):
    lm = handscroll.load(folder)
    size = lm.model.config.vocab
    token = {"content": "<image>", "special": True} | dict.fromkeys(
        ("lstrip", "rstrip", "single_word", "normalized"), False
    )
    changed(folder, "tokenizer_config.json", added_tokens_decoder={str(size): token})
    again = handscroll.load(folder)
    assert again.tokenizer.vocab_size == size + 1
    assert again.generate("Once", max_tokens=4) == lm.generate("Once", max_tokens=4)


def rows_of(files: Files, tokenizer: Tokenizer, **model) -> list[list[int]]:
    return [row.tokens.tolist() for row, _ in Packed(files.source(tokenizer, **model), 32)]


def test_documents_of_a_recipe_end_with_the_end_token(tiny_folder, tmp_path):
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": f"Once {n}"}) + "\n" for n in range(20)))
    tokenizer = Tokenizer.load(tiny_folder)
    files = {"files": (str(tmp_path / "texts.jsonl"),)}
    assert tokenizer.eos is not None

    def count(number: int, rows: list[list[int]]) -> int:
        return sum(row.count(number) for row in rows)

    assert count(tokenizer.eos, rows_of(Files(**files), tokenizer)) >= 18
    assert count(tokenizer.eos, rows_of(Files(**files, end=False), tokenizer)) == 0
    assert count(tokenizer.eos, rows_of(Files(**files), tokenizer, forward=False)) == 0
    assert count(7, rows_of(Files(**files), tokenizer, ends=(7, 9))) >= 18  # the model ends its texts otherwise


def test_of_a_hub_repository_only_what_is_read_is_downloaded(monkeypatch, tmp_path):
    read = [
        "config.json",
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.model",
        "vocab.txt",
        "1_Pooling/config.json",
        "additional_chat_templates/tools.jinja",
    ]
    left = [
        "consolidated.safetensors",
        "consolidated-00001-of-00002.safetensors",
        "original/model.safetensors",
        "onnx/model.onnx",
        "pytorch_model.bin",
        "modeling_own.py",
    ]
    asked = {}
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **how: asked.update(how) or str(tmp_path))
    locate("owner/name")
    assert list(filter_repo_objects([*read, *left], **asked)) == read
