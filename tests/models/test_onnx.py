"""ONNX graphs: onnxruntime's numbers are the model's, with caches, padding, windows and scaled positions."""

import json
from functools import cache

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from handscroll.base.errors import CheckpointError, ConfigError, HandscrollError
from handscroll.cli.main import app
from handscroll.extend.story import STARTER
from handscroll.lm import load
from handscroll.models import onnx as module
from handscroll.models.onnx import FILE, Differences, compare, graph_of, save_onnx
from handscroll.models.sentence_folder import Sentences
from handscroll.models.table import family
from handscroll.models.weights import load_model
from handscroll.nn.quantised import quantise
from handscroll.text.tokenizer import Tokenizer
from tests.conformance.families import reference, save

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def session(folder):
    return onnxruntime.InferenceSession(str(folder / FILE), providers=["CPUExecutionProvider"])


def export(*words, fails=None):
    result = CliRunner().invoke(app, ["export", *(str(word) for word in words)])
    if fails is None:
        assert result.exit_code == 0, result.output + repr(result.exception)
    else:
        assert isinstance(result.exception, HandscrollError) and fails in str(result.exception), repr(result.exception)
    return result.stdout


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Makes a graph of a form and writes it, once: the graph, its folder and its differences from the model."""

    @cache
    def make(name, scaling="none", pooling=""):
        folder = tmp_path_factory.mktemp("onnx")
        model = load_model(save(reference(name, scaling), folder / "model"), dtype=torch.float32)
        graph = graph_of(model, Sentences(pooling, normalise=False) if pooling else None)
        return graph, folder / "out", save_onnx(graph, folder / "out", {"trained": 64})

    return make


LONG = [pytest.param(*one, marks=pytest.mark.long) for one in (("llama", "yarn"), ("gpt2", "none"), ("bloom", "none"))]


@pytest.mark.parametrize(("name", "scaling"), [("gemma3_text", "linear"), *LONG])
def test_a_decoder_over_its_cache_gives_the_logits_of_the_model(exported, name, scaling):
    """Two rows of different lengths, in pieces and one by one; windows, biases and scaled positions included."""
    graph, folder, found = exported(name, scaling)
    assert found.largest < 1e-4 and found.numbers > 1000
    assert compare(graph, folder / FILE) == found
    made = session(folder)
    assert json.loads(made.get_modelmeta().custom_metadata_map["handscroll"]) == {"trained": 64}
    assert [one.name for one in made.get_inputs()][:3] == ["input_ids", "attention_mask", "past_key_values.0.key"]
    assert made.get_inputs()[2].shape[0] == "batch" and made.get_inputs()[2].shape[2] == "past"


@pytest.mark.parametrize("pooling", ["", pytest.param("cls+max", marks=pytest.mark.long)])
def test_an_encoder_gives_states_vectors_and_logits(exported, pooling):
    _, folder, found = exported("bert", pooling=pooling)
    assert found.largest < 1e-4
    names = {one.name for one in session(folder).get_outputs()}
    assert names == {"last_hidden_state", "sentence_embedding", "logits"}


def test_a_position_past_a_table_is_refused_by_whatever_runs_the_graph(exported):
    graph, folder, _ = exported("bert", pooling="")
    shape = (1, graph.module.model.config.context + 1)
    given = {name: np.zeros(shape, np.int64) for name in ("input_ids", "token_type_ids")}
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="out of data bounds"):
        session(folder).run(None, given | {"attention_mask": np.ones(shape, np.int64)})


@pytest.mark.long  # an export of some 20 MB takes ten seconds
def test_the_starter_writes_the_same_text_through_onnxruntime(tmp_path):
    said = export(STARTER, tmp_path / "out", "--onnx")
    assert "written: " in said and "numbers compared" in said
    lm, run, prompt = load(STARTER, dtype="float32"), session(tmp_path / "out"), "def read(self, path):\n"
    ids = Tokenizer.load(tmp_path / "out").encode(prompt)
    assert ids == lm.encode(prompt)
    want = list(lm.continuations(ids, max_tokens=24, ignore_eos=True)[0].tokens)
    names, (_, heads, _, size) = [one.name for one in run.get_inputs()], run.get_inputs()[2].shape
    past, given, found = [np.zeros((1, heads, 0, size), np.float32)] * (len(names) - 2), ids, []
    for _ in want:
        mask = np.ones((1, past[0].shape[2] + len(given)), np.int64)
        logits, *past = run.run(None, dict(zip(names, [np.array([given]), mask, *past], strict=True)))
        given = [int(logits[0, -1].argmax())]
        found += given
    assert found == want


@pytest.mark.parametrize(
    ("name", "word"), [("lstm", "recurrent"), ("t5", "source"), ("glm-blank", "blanks"), ("mixtral", "experts")]
)
def test_what_has_no_graph_is_refused_with_the_reason(name, word):
    kind = family(name)
    foreign = {"model_type": name, **dict(kind.forms[""])}
    with pytest.raises(ConfigError, match=word):
        graph_of(kind.build(kind.parse(foreign)))


def test_wrong_use_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    out = tmp_path / "out"
    export(STARTER, out, "--onnx", "--type", "q8_0", fails="f32")
    export(STARTER, tmp_path / "a.onnx", fails="--onnx")
    export(STARTER, tmp_path / "a.gguf", "--onnx", fails="folder")
    export(STARTER, out, "--length", "9", fails="--onnx")
    with pytest.raises(ConfigError, match="quantised"):
        graph_of(quantise(load(STARTER, dtype="float32").model))
    monkeypatch.setattr(module, "_trace", lambda graph, path, about: path.touch())
    for apart in (2e-3, float("inf")):
        monkeypatch.setattr(module, "compare", lambda *_, apart=apart: Differences(apart, 1))
        with pytest.raises(CheckpointError, match="differ"):
            save_onnx(graph_of(load(STARTER, dtype="float32").model), out, {})
        assert not out.exists()
    monkeypatch.setattr(module, "compare", lambda *_: Differences(3e-5, 1234))
    assert "to 3.0e-05 (1,234 numbers compared)" in export(STARTER, out, "--onnx")
    assert {path.name for path in out.iterdir()} >= {FILE, "config.json", "tokenizer.json"}


def test_an_export_that_was_killed_is_no_hindrance_to_the_next_one(tmp_path, monkeypatch):
    (tmp_path / "onnx.tmp").mkdir()
    (tmp_path / "onnx.tmp" / "old.onnx").touch()
    monkeypatch.setattr(module, "_trace", lambda graph, path, about: path.touch())
    monkeypatch.setattr(module, "compare", lambda *_: Differences(3e-5, 1234))
    load(STARTER, dtype="float32").export_onnx(tmp_path)
    assert (tmp_path / FILE).is_file()
    assert not any((tmp_path / name).exists() for name in ("onnx.tmp", "old.onnx"))
