"""`generation_config.json`: end tokens and recommended settings, read, shown, overridden, left out and written back."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import handscroll
from handscroll.base.errors import ConfigError
from handscroll.base.gguf import read_gguf
from handscroll.cli.main import app
from handscroll.generate.defaults import Defaults
from handscroll.generate.sample import Sampling

QWEN = {
    "bos_token_id": 1,
    "do_sample": True,
    "eos_token_id": [5, 7],
    "pad_token_id": 5,
    "repetition_penalty": 1.05,
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.8,
    "no_repeat_ngram_size": 3,
    "transformers_version": "4.37.0",
}


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    """The tiny model with a file like that of Qwen 2."""
    shutil.copytree(tiny_folder, tmp_path / "model")
    write(tmp_path / "model", QWEN)
    return tmp_path / "model"


def write(folder: Path, content: dict) -> None:
    (folder / "generation_config.json").write_text(json.dumps(content), encoding="utf-8")


def ran(*arguments: str):
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exit_code == 0, result.output
    return result


def test_a_checkpoint_that_means_greedy_by_a_tiny_temperature_is_read():
    """Qwen2.5-VL recommends 0.000001."""
    assert Defaults.parse({"do_sample": True, "temperature": 1e-6}, "file").temperature == 1e-6


def test_the_listed_end_tokens_end_a_text_as_in_the_reference_library(tiny_folder, folder, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    prompt = [11, 12, 13, 14]
    free = handscroll.load(tiny_folder).continuations(prompt, max_tokens=12, ignore_eos=True)[0].tokens
    end = free[0]
    write(folder, {"eos_token_id": [5, end]})
    reference = AutoModelForCausalLM.from_pretrained(folder)
    wanted = reference.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0)[0, 4:]
    lm = handscroll.load(folder)
    found = lm.continuations(prompt, max_tokens=12)[0]
    assert (list(found.tokens), found.finish) == (wanted.tolist(), "eos")
    lm.save(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [5, end]


def test_recommended_settings_stand_under_those_of_a_call(folder):
    lm = handscroll.load(folder)
    assert lm.sampling() == Sampling(temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.05)
    assert lm.sampling(top_k=3, max_tokens=9).top_k == 3
    assert lm.sampling(temperature=0.0) == Sampling(repetition_penalty=1.05)
    assert lm.sampling(plain=True) == Sampling()
    wanted = lm.generate("Once", max_tokens=8, plain=True, **QWEN_SAMPLING, seed=3)
    assert lm.generate("Once", max_tokens=8, seed=3) == wanted != lm.generate("Once", max_tokens=8, plain=True)
    assert "".join(lm.stream("Once", max_tokens=8, seed=3)) == wanted
    assert lm.beams("Once", max_tokens=2)[0].score is not None  # drawing has no part in it
    with pytest.raises(ConfigError, match="unknown setting 'temprature'"):
        lm.generate("Once", temprature=1.0)


QWEN_SAMPLING = {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}


def test_a_file_that_does_not_sample_is_greedy_and_still_gives_its_cut_offs_to_a_temperature(folder):
    write(folder, {"temperature": 0.6, "top_p": 0.9, "top_k": -1, "repetition_penalty": None})
    lm = handscroll.load(folder)
    assert lm.sampling() == Sampling()
    assert lm.sampling(temperature=0.5) == Sampling(temperature=0.5, top_p=0.9)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"do_sample": True, "temperature": "hot"}, "temperature"),
        ({"top_p": 7}, "top_p"),
        ({"eos_token_id": "</s>"}, "e"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_it(folder, wrong, named):
    write(folder, wrong)
    with pytest.raises(ConfigError, match=named):
        handscroll.load(folder)


def test_end_tokens_that_the_model_cannot_give_are_left_out(folder):
    write(folder, {"eos_token_id": [-1, 5, 99999]})
    assert handscroll.load(folder).model.config.eos == (5,)


def test_the_command_line_shows_them_and_leaves_them_out(folder):
    shown = ran("info", folder).stdout
    assert "temperature 0.7, repetition_penalty 1.05, top_k 20, top_p 0.8" in shown
    assert "no_repeat_ngram_size 3" in shown and "end tokens             5 " in shown
    plain = ("--prompt", "Once", "--max-tokens", "8", "--plain")
    given = ("--prompt", "Once", "--max-tokens", "8", "--seed", "3")
    lm = handscroll.load(folder)
    drawn = ran("generate", folder, *given)
    assert drawn.stdout.strip("\n") == lm.generate("Once", max_tokens=8, seed=3).strip("\n")
    assert "top_k 20" in drawn.stderr and "--plain" in drawn.stderr
    greedy = ran("generate", folder, *plain)
    assert greedy.stdout.strip("\n") == lm.generate("Once", max_tokens=8, plain=True).strip("\n")
    assert "recommend" not in greedy.stderr
    about = json.loads(ran("generate", folder, *given, "--json", "--temperature", "0.5").stdout)
    assert about["settings"]["temperature"] == 0.5 and about["settings"]["top_k"] == 20


def test_a_batch_follows_them_under_the_settings_of_each_line(folder, tmp_path):
    lines = [{"prompt": "Once", "max_tokens": 6, "seed": 3}, {"prompt": "Once", "max_tokens": 6, "temperature": 0}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lm = handscroll.load(folder)
    ran("batch", folder, tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl", "--memory", "0.01")
    texts = [json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert texts == [
        lm.generate("Once", max_tokens=6, seed=3),
        lm.generate("Once", max_tokens=6, temperature=0.0),
    ]


def test_a_gguf_file_carries_the_settings(folder, tmp_path):
    handscroll.load(folder).export_gguf(tmp_path / "model.gguf", "f32")
    found = handscroll.load(tmp_path / "model.gguf")
    assert found.sampling() == Sampling(**QWEN_SAMPLING)
    assert found.defaults.taken({"temperature": 0.2}) == {"top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}
    assert found.defaults.unused() == {}
    held = read_gguf(tmp_path / "model.gguf").metadata
    assert held["general.sampling.penalty_last_n"] == -1  # of all tokens, where llama.cpp takes the last 64


def test_a_gguf_file_carries_the_penalty_of_a_model_that_does_not_sample(folder, tmp_path):
    write(folder, {"repetition_penalty": 1.2})
    handscroll.load(folder).export_gguf(tmp_path / "model.gguf", "f32")
    assert handscroll.load(tmp_path / "model.gguf").sampling() == Sampling(repetition_penalty=1.2)


def test_settings_of_a_gguf_file_that_are_not_followed_are_named_and_kept(folder, tmp_path):
    others = {"general.sampling.mirostat": 2, "general.sampling.penalty_last_n": 64, "general.sampling.sequence": "t"}
    lm = handscroll.load(folder)
    lm.defaults = Defaults(others)
    lm.export_gguf(tmp_path / "model.gguf", "f32")
    found = handscroll.load(tmp_path / "model.gguf")
    assert found.defaults.unused() == others and found.sampling() == Sampling()
    assert "general.sampling.mirostat 2" in ran("info", tmp_path / "model.gguf").stdout
    found.save(tmp_path / "again")
    handscroll.load(tmp_path / "again").export_gguf(tmp_path / "again.gguf", "f32")
    assert handscroll.load(tmp_path / "again.gguf").defaults.unused() == others
