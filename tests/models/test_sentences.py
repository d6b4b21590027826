"""Sentence encoders as folders say they are: pooling, length, prompts; read, followed and written back."""

import json
import logging
from pathlib import Path

import pytest
import torch

import handscroll
from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.base.gguf import read_gguf
from handscroll.extend.extend import extension
from handscroll.models.gguf.load import ignored_keys
from handscroll.models.sentence_folder import Sentences
from handscroll.text.wordpiece import wordpiece_json
from tests.models.gguf.material import changed
from tests.naming import naming

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(20)), "q", ":"]
POOLINGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "sqrt": "pooling_mode_mean_sqrt_len_tokens",
    "last": "pooling_mode_lasttoken",
}
KIND = "sentence_transformers.models."


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A tiny BERT made by the reference library, without a recipe."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(wordpiece_json("\n".join(WORDS), {}, ""))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": 16, "tokenizer_class": "BertTokenizer"})
    )
    return folder


def recipe(folder: Path, modes: list[str], normalise: bool = True, **more) -> None:
    """The files that sentence-transformers writes."""
    paths = [("", "Transformer"), ("1_Pooling", "Pooling")] + [("2_Normalize", "Normalize")] * normalise
    paths += [("3_Dense", "Dense")] * more.pop("dense", False)
    listed = [{"idx": n, "name": str(n), "path": path, "type": KIND + kind} for n, (path, kind) in enumerate(paths)]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    flags = {key: mode in modes for mode, key in POOLINGS.items()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32} | flags))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 8, "do_lower_case": False}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(more))


@pytest.fixture
def folder(bare, tmp_path) -> Path:
    import shutil

    shutil.copytree(bare, tmp_path / "model")
    return tmp_path / "model"


TEXTS = ["w1 w2", "w3", "w4 w5 w6 w7 w8 w9 w10 w11 w12"]


def published(folder: Path, texts: list[str], modes: list[str], normalise: bool) -> torch.Tensor:
    """What the reference recipe gives, by the reference library's model."""
    from transformers import BertModel

    model, found = BertModel.from_pretrained(folder).eval(), []
    for text in texts:
        ids = [2, *(WORDS.index(word) for word in text.replace(":", " :").split()), 3]
        ids = ids if len(ids) <= 8 else [*ids[:7], 3]
        with torch.no_grad():
            states = model(torch.tensor([ids])).last_hidden_state[0]
        pools = {"cls": states[0], "max": states.amax(0), "mean": states.mean(0), "last": states[-1]}
        pools["sqrt"] = states.sum(0) / len(ids) ** 0.5
        found.append(torch.cat([pools[mode] for mode in POOLINGS if mode in modes]))
    vectors = torch.stack(found)
    return torch.nn.functional.normalize(vectors, dim=1) if normalise else vectors


@pytest.mark.parametrize("modes", [["mean"], ["cls"], ["max"], ["sqrt"], ["last"], ["cls", "mean"]], ids="+".join)
@pytest.mark.parametrize("normalise", [True, False])
def test_the_recipe_of_the_folder_is_followed_and_long_texts_are_cut_out_loud(folder, modes, normalise, caplog):
    recipe(folder, modes, normalise)
    lm = handscroll.load(folder)
    with caplog.at_level(logging.WARNING, logger="handscroll.sentences"):
        found = lm.embed(TEXTS)
    torch.testing.assert_close(found, published(folder, TEXTS, modes, normalise), atol=1e-5, rtol=1e-5)
    assert "1 of 3 texts have more than 8 tokens" in caplog.text and "windows=True" in caplog.text
    assert lm.embed(TEXTS, windows=True).shape == found.shape


def test_prompts_are_put_before_a_text_by_name(folder):
    recipe(folder, ["mean"], prompts={"query": "q: ", "document": ""}, default_prompt_name="document")
    lm = handscroll.load(folder)
    plain = lm.embed(["w1 w2"])
    torch.testing.assert_close(lm.embed(["w1 w2"], prompt="query"), published(folder, ["q: w1 w2"], ["mean"], True))
    torch.testing.assert_close(plain, published(folder, ["w1 w2"], ["mean"], True))
    with pytest.raises(ConfigError, match=naming("qery", "query")):
        lm.embed(["w1"], prompt="qery")


def test_a_lengthened_folder_keeps_its_layout_with_the_new_length(folder, tmp_path):
    recipe(folder, ["cls"], prompts={"query": "q: "})
    longer = extension(handscroll.load(folder), 128, "interpolate").lm
    longer.save(tmp_path / "out")
    files = {name: json.loads((tmp_path / "out" / name).read_text()) for name in Sentences.read(folder).files}
    assert files["sentence_bert_config.json"]["max_seq_length"] == 128
    assert [one["type"] for one in files["modules.json"]] == [
        KIND + one for one in ("Transformer", "Pooling", "Normalize")
    ]
    assert files["1_Pooling/config.json"]["pooling_mode_cls_token"] and (tmp_path / "out" / "2_Normalize").is_dir()
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["model_max_length"] == 128
    again = handscroll.load(tmp_path / "out")
    assert again.sentences.length == 128 and again.sentences.prompts == {"query": "q: "}
    torch.testing.assert_close(again.embed(TEXTS), longer.embed(TEXTS))
    short = handscroll.load(folder)
    short.save(tmp_path / "same")
    assert json.loads((tmp_path / "same" / "tokenizer_config.json").read_text())["model_max_length"] == 16
    torch.testing.assert_close(handscroll.load(tmp_path / "same").embed(TEXTS), short.embed(TEXTS))


@pytest.mark.parametrize("mode, number", [("mean", 1), ("cls", 2), ("last", 3)])
def test_a_gguf_file_keeps_the_recipe(folder, tmp_path, mode, number):
    recipe(folder, [mode], prompts={"query": "q: "}, default_prompt_name="query")
    lm = handscroll.load(folder)
    file = lm.export_gguf(tmp_path / "a.gguf", "f32")
    assert read_gguf(file).metadata["bert.pooling_type"] == number
    again = handscroll.load(file)
    torch.testing.assert_close(again.embed(TEXTS), lm.embed(TEXTS))
    assert not any("pooling" in key or "sentences" in key for key in ignored_keys(file))
    again.save(tmp_path / "back")
    torch.testing.assert_close(handscroll.load(tmp_path / "back").embed(TEXTS), lm.embed(TEXTS))
    with pytest.raises(ConfigError, match=r"pooling_type.* contradicts"):
        handscroll.load(changed(tmp_path / "b.gguf", file, {"bert.pooling_type": number % 3 + 1}))


@pytest.mark.parametrize("number, mode", [(1, "mean"), (2, "cls"), (3, "last"), (0, "mean")])
def test_a_gguf_file_of_others_is_pooled_as_its_key_says(bare, tmp_path, number, mode):
    file = handscroll.load(bare).export_gguf(tmp_path / "a.gguf", "f32")
    assert read_gguf(file).metadata["bert.pooling_type"] == 1  # without a recipe the vector is the mean
    lm = handscroll.load(changed(tmp_path / "b.gguf", file, {"bert.pooling_type": number}))
    torch.testing.assert_close(lm.embed(["w1 w2"]), lm.embed(["w1 w2"], mode))


@pytest.mark.parametrize("number", [4, "cls"])
def test_a_pooling_of_gguf_files_that_is_not_known_is_refused_where_vectors_are_asked_for(bare, tmp_path, number):
    file = handscroll.load(bare).export_gguf(tmp_path / "a.gguf", "f32")
    lm = handscroll.load(changed(tmp_path / "b.gguf", file, {"bert.pooling_type": number}))
    lm.save(tmp_path / "out")
    for one in (lm, handscroll.load(tmp_path / "out")):
        with pytest.raises(ConfigError, match=f"the pooling 'type {number}'"):
            one.embed(["w1"])


def test_a_recipe_in_a_gguf_file_names_no_files_outside(folder, tmp_path):
    recipe(folder, ["mean"])
    file = handscroll.load(folder).export_gguf(tmp_path / "a.gguf", "f32")
    listed = {**json.loads(read_gguf(file).metadata["handscroll.sentences"]), "../outside.json": {}}
    lm = handscroll.load(changed(tmp_path / "b.gguf", file, {"handscroll.sentences": json.dumps(listed)}))
    lm.save(tmp_path / "out")
    assert lm.sentences is not None and not (tmp_path / "outside.json").exists()


@pytest.mark.parametrize("modes, dense, said", [(["max"], False, "max"), (["cls", "mean"], False, r"cls\+mean"),
                                                (["mean"], True, "Dense")])  # fmt: skip
def test_a_recipe_that_gguf_files_do_not_hold_is_not_exported(folder, tmp_path, modes, dense, said):
    recipe(folder, modes, dense=dense)
    with pytest.raises(ConfigError, match=f"{said}.*save a folder"):
        handscroll.load(folder).export_gguf(tmp_path / "a.gguf", "f32")


def test_what_is_not_known_is_refused_where_vectors_are_asked_for(folder, tmp_path, caplog):
    recipe(folder, ["mean"], dense=True)
    lm = handscroll.load(folder)
    with pytest.raises(ConfigError, match="Dense"):
        lm.embed(["w1"])
    lm.save(tmp_path / "out")
    for again in (handscroll.load(tmp_path / "out"), extension(lm, 128, "interpolate").lm):
        with pytest.raises(ConfigError, match="Dense"):
            again.embed(["w1"])
    assert "'Dense' is not written" in caplog.text
    (folder / "modules.json").write_text('[{"type": "x.Pooling", "path": "../elsewhere"}]')
    with pytest.raises(CheckpointError, match="outside"):
        handscroll.load(folder)


def test_the_last_token_of_a_causal_model_has_read_the_whole_text(tiny_folder):
    lm = handscroll.load(tiny_folder)
    found = lm.embed(["Once upon"], pooling="last", normalise=False)
    ids = torch.tensor([lm.encode("Once upon")])
    from handscroll.nn.marks import Marks

    marks = Marks.run(0, ids.shape[1])
    with torch.no_grad():
        hidden = lm.model.hidden(lm.model.embed(ids, marks), marks, lm.model.mask())
    torch.testing.assert_close(found[0], hidden[0, -1], atol=1e-5, rtol=1e-5)


def test_a_real_encoder_embeds_by_its_published_recipe_without_being_told():
    from transformers import AutoModel

    path = Path.home() / ".cache" / "handscroll-real" / "all-MiniLM-L6-v2"
    if not path.is_dir():
        pytest.skip("the checkpoint all-MiniLM-L6-v2 is absent")
    lm, model = handscroll.load(path), AutoModel.from_pretrained(path).eval()
    texts = ["This is an example sentence", "你好，世界", "long words stand here " * 120]
    for text, ours in zip(texts, lm.embed(texts), strict=True):
        ids = lm.encode(text)
        ids = ids if len(ids) <= 256 else [*ids[:255], ids[-1]]
        with torch.no_grad():
            states = model(torch.tensor([ids])).last_hidden_state[0].mean(0)
        torch.testing.assert_close(ours, torch.nn.functional.normalize(states, dim=0), atol=1e-5, rtol=1e-5)
