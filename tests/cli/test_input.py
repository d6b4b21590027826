"""What the verbs are given: standard input, options that would do nothing, and files that cannot be made."""

import os
import subprocess
import sys

import pytest

from tests.cli.material import run
from tests.conftest import ROOT
from tests.serve import material


def test_standard_input_is_decoded_as_a_file_is(tiny_folder):
    words = ["generate", tiny_folder, "--max-tokens", "1", "--json", "--prompt"]
    want, said = run(*words, "长卷是一种画，很长。"), run(*words, "-", input="长卷是一种画，很长。".encode("gb18030"))
    assert said == want
    run(*words, "-", input=b"\xff\xfe\xff", fails="standard input")
    run(*words, "-", input=b"", fails="standard input: the file is empty")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["info", "MODEL", "--dtype", "float32"], "--dtype does nothing here: give --kernels too"),
        (["info", "MODEL", "--kernels", "--vllm"], "--vllm does nothing here"),
        (["info", "MODEL", "--vllm", "--adapter", "x"], "--adapter does nothing here"),
        (["info", "--kernels", "--adapter", "x"], "--adapter does nothing here: it changes a model, so name one"),
        (["explain", "x", "a", "--answer", "b", "--max-tokens", "3"], "--max-tokens does nothing here"),
        (["explain", "x", "a", "--answer", "b", "--plain"], "--plain does nothing here: leave out --answer"),
        (["metrics", "--labels", "a,b"], "--labels needs PREDICTIONS"),
        (["metrics", "--json", "scores.json"], "--json needs PREDICTIONS"),
        (["chat", "MODEL", "--max-tokens", "0"], "max_tokens"),
        (["train", ROOT / "recipes/tiny/llama.toml", "--resume", "a", "--out", "b"], "--out b names another"),
    ],
)
def test_options_that_would_do_nothing_are_refused(tiny_folder, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(*(tiny_folder if word == "MODEL" else word for word in words), input="x\n", fails=said)


@pytest.mark.parametrize("model", [True, False])
@pytest.mark.parametrize(
    ("option", "value"), [("--weights", "int3"), ("--dtype", "int8"), ("--device", "foo"), ("--device", "cuda:99")]
)
def test_kernels_are_not_shown_for_what_is_unknown(tiny_folder, model, option, value):
    run("info", *([tiny_folder] if model else []), "--kernels", option, value, fails=f"'{value}'")


@pytest.mark.parametrize("moved", ["model", "adapter"])
def test_a_reading_whose_model_or_adapter_was_moved_says_which_and_how_to_name_it(tmp_path, moved):
    places = {"model": material.decoder(tmp_path / "model"), "adapter": material.adapter(tmp_path / "adapter")}
    (tmp_path / "a.txt").write_text(material.TEXT, encoding="utf-8")
    store = "--store", tmp_path / "store"
    over = "--adapter", places["adapter"], "--room", "90"
    run("read", places["model"], tmp_path / "a.txt", "--save", "x", *over, *store)
    places[moved].rename(tmp_path / "elsewhere")
    for words in (["ask", "x", "a", *store], ["explain", "x", "a", *store]):
        run(*words, fails=f"{places[moved]}")
        run(*words, fails="--model if the model was moved, or with --adapter if its adapters were")
    run("ask", "x", "a", "--max-tokens", "2", f"--{moved}", tmp_path / "elsewhere", *store)


def test_a_folder_that_is_a_file_is_refused_before_the_work(tmp_path):
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    (tmp_path / "a.csv").write_text("text,label\nx,y\nz,y\n", encoding="utf-8")
    run("tokenizer", tmp_path / "a.csv", "--out", tmp_path / "taken", fails="is a file; name a folder")
    run("data", "split", tmp_path / "a.csv", "--out", tmp_path / "taken", fails="is a file; name a folder")


def test_an_error_of_the_system_is_one_sentence(tmp_path):
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    (tmp_path / "a.csv").write_text("text,label\nx,y\n", encoding="utf-8")
    out = tmp_path / "taken" / "rows.jsonl"
    code = [
        "-c",
        "from handscroll.cli.main import main; main()",
        "data",
        "clean",
        "a.csv",
        "--space",
        "--out",
        str(out),
    ]
    done = subprocess.run([sys.executable, *code], cwd=tmp_path, capture_output=True, text=True, env=os.environ)
    assert (done.returncode, done.stderr) == (2, f"error: {out.parent}: File exists\n")


def test_a_template_in_another_encoding_is_read_or_named(tiny_folder, tmp_path):
    (tmp_path / "t.jinja").write_bytes(b"\xff\xff{{ messages }}")
    run("chat", tiny_folder, "--template", tmp_path / "t.jinja", input="x\n", fails="t.jinja: not valid UTF-8")
