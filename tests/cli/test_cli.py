"""The command: every verb does its job on real files, and bad input is one paragraph and status 2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_group
from typer.testing import CliRunner

import handscroll
from handscroll.cli import main, screen
from handscroll.cli.evaluate import evaluations
from handscroll.cli.main import app
from handscroll.cli.options import LOADING
from tests.cli.material import run
from tests.conftest import ROOT

LIBRARY = Path(__import__("argparse").__file__)
TINY = ROOT / "recipes" / "tiny" / "llama.toml"


def test_info_says_which_kernels_run_and_why_no_faster_ones(tiny_folder):
    text = run("info", "--kernels", tiny_folder, "--dtype", "float32")
    assert text.startswith("compiled kernels: ")
    for words in ("one new token", "training on", "gradient of attention", "not fold: more than 16 queries"):
        assert words in text
    assert "the model computes in float32 on cpu" in text
    text = run("info", "--kernels", "--weights", "float")
    assert "not graph: the tensors are not on a GPU" in text and "the model computes in bfloat16 on cpu" in text


@pytest.mark.parametrize(
    ("load", "given", "spins"),
    [
        ("8.10 4.00 2.00 9/120 77", {}, "0"),
        ("0.10 4.00 2.00 1/120 77", {}, None),
        ("1.90 4.00 2.00 1/120 77", {}, None),  # what ran has ended
        ("8.10 4.00 2.00 9/120 77", {"GOMP_SPINCOUNT": "7"}, "7"),
        ("8.10 4.00 2.00 9/120 77", {"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_threads_sleep_while_they_wait_where_others_need_the_cores(load, given, spins, tmp_path, monkeypatch):
    (tmp_path / "loadavg").write_text(load + "\n")
    monkeypatch.setattr(main, "LOAD", tmp_path / "loadavg")
    monkeypatch.setattr(os, "environ", dict(given))
    main.share_cores()
    assert os.environ.get("GOMP_SPINCOUNT") == spins
    monkeypatch.setattr(main, "LOAD", tmp_path / "none")
    main.share_cores()


def test_progress_is_lines_where_nobody_watches(capsys, monkeypatch):
    times = iter([0.0, 10.0, 61.0, 90.0, 122.0, 150.0, 272.0, *(300.0 + 60 * n for n in range(18))])
    monkeypatch.setattr(screen, "monotonic", lambda: next(times))
    with screen.bar("reading", 400) as advance:
        for done in (100, 160, 190, 220):  # the first 100 were there before
            advance(done)
        advance(1, "scoring", 12)  # something else, which has its own pace
        advance(3, "scoring", 12)
        for done in (100, 200, 300, 310, 320, 330, 340, 350):  # a slower part: the first speed is soon forgotten
            advance(done, "", 1000)
        for done in (0, 0, 0, 0, 0, 1, 1, 1, 1, 2):  # updates of five and four minutes, which are shown each minute
            advance(done, "update", 4)
    said = capsys.readouterr()
    assert said.out == "" and said.err.splitlines() == [
        "reading: 160 of 400, about 4 min left",
        "reading: 220 of 400, about 3 min left",
        "reading: 3 of 12, about 9 min left scoring",
        *(
            f"reading: {done} of 1,000, about {left} min left"
            for done, left in ((200, 8), (300, 7), (310, 10), (320, 12), (330, 21), (340, 66), (350, 65))
        ),
        *["reading: 0 of 4 update"] * 5,
        *(
            f"reading: {done} of 4, about {left} min left update"
            for done, left in ((1, 15), (1, 18), (1, 21), (1, 24), (2, 9))
        ),
    ]


def test_info(tiny_folder):
    text = run("info", tiny_folder)
    for words in (
        "llama",
        "64 tokens",
        "rotary, base 10000, no scaling",
        "KV cache per token     384 bytes in float32",
    ):
        assert words in text


@pytest.mark.parametrize("verb", ["perplexity", "policies", "needle", "length", "ruler", "views"])
def test_what_measures_a_model_on_texts_loads_both_by_the_same_options(verb):
    given = {param.name: param.default for param in get_group(evaluations).commands[verb].params}
    names = list(given)
    first = names.index("dtype")
    assert "loading" not in names and names[first : first + 6] == list(vars(LOADING))
    assert {name: given[name] for name in vars(LOADING)} == vars(LOADING)


def test_train_refuses_resumes_and_overrides(tmp_path):
    small = ["--set", "stages.0.steps=2", "--set", "stages.1.steps=2", "--set", "threads=1"]
    text = run("train", TINY, *small, "--out", tmp_path / "run")
    assert "4 steps" in text and (tmp_path / "run" / "model" / "model.safetensors").exists()
    run("train", TINY, *small, "--out", tmp_path / "run", fails="--resume")
    assert "4 steps" in run("train", TINY, *small, "--resume", tmp_path / "run")
    run("train", TINY, "--resume", tmp_path / "nothing", fails="nothing")
    run("train", TINY, "--set", "optimizer.lrr=1", "--out", tmp_path / "x", fails="'lr'")
    run("train", tmp_path / "none.toml", fails="none.toml")
    assert not (tmp_path / "x").exists()


def test_extend_evaluate_generate(tiny_folder, tmp_path):
    text = run("extend", tiny_folder, "--to", "128", "--text", LIBRARY, "--out", tmp_path / "longer")
    assert "chosen" in text and "64 -> 128 tokens" in text and "yarn" in text and "ntk" in text
    assert handscroll.load(tmp_path / "longer").context == 128
    run("extend", tiny_folder, "--to", "128", "--out", tmp_path / "longer", fails="longer")
    json_out = tmp_path / "loss.jsonl"
    text = run(
        "evaluate", "perplexity", tmp_path / "longer", LIBRARY, "--length", "128", "--windows", "3",
        "--json", json_out, "--report", tmp_path / "report",
    )  # fmt: skip
    records = [json.loads(line) for line in json_out.read_text().splitlines()]
    assert [r["label"] for r in records] == ["exact", "sliding window"] and records[0]["windows"] == 3
    assert f"{records[0]['mean']:.4f}" in text
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<svg" in page and "http://" not in page.replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", "")
    text = run("evaluate", "needle", tmp_path / "longer", "--lengths", "64,128", "--depths", "0,1", "--samples", "2")
    assert "depth" in text and "128" in text
    text = run("generate", tmp_path / "longer", "--prompt", "def read(", "--max-tokens", "5")
    assert len(text) > 1
    assert text == run("generate", tmp_path / "longer", "--prompt", "-", "--max-tokens", "5", input="def read(")


def test_chat_goes_on_and_says_what_happened_when_it_outgrew(tiny_folder, tmp_path):
    said = run("extend", tiny_folder, "--to", 512, "--method", "dynamic-ntk", "--out", tmp_path / "longer")
    assert "only Handscroll" not in said
    lines = "import re\n" * 6
    result = CliRunner().invoke(app, ["chat", str(tmp_path / "longer"), "--max-tokens", "20"], input=lines)
    assert result.exit_code == 0 and len(result.stdout.splitlines()) >= 6
    assert "outgrow" not in result.stdout, "only the text goes to standard output"
    assert "again" in result.stderr and "approximate" not in result.stderr
    assert "no chat template" in result.stderr
    run("chat", tiny_folder, fails="64", input=lines * 9)
    said = run(
        "extend", tiny_folder, "--to", 256, "--method", "self-extend", "--out", tmp_path / "own", "--text", LIBRARY
    )
    assert "only Handscroll reads this folder" in said
    assert "self-extend (factor 4.0" in run("info", tmp_path / "own")


def test_extend_with_lora_tuning(tiny_folder, tmp_path):
    words = ["--method", "pi", "--tune", LIBRARY, "--steps", "3", "--rows", "1", "--lora", "2"]
    run("extend", tiny_folder, "--to", "128", *words, "--out", tmp_path / "tuned")
    kept = json.loads((tmp_path / "tuned" / "handscroll.json").read_text())
    assert kept["tuned"]["steps"] == 3 and kept["tuned"]["lora"]["rank"] == 2
    assert (tmp_path / "tuned.tuning" / "adapter" / "adapter_config.json").exists()
    idle = "--lora does nothing here: give --tune too"
    run("extend", tiny_folder, "--to", "128", "--lora", "2", "--out", tmp_path / "y", fails=idle)


BAD = {
    "shorter": (["extend", "{m}", "--to", "32", "--out", "{t}/o"], "64"),
    "method": (["extend", "{m}", "--to", "128", "--method", "yarm", "--out", "{t}/o"], "'yarn'"),
    "factors": (
        ["extend", "{m}", "--to", "128", "--method", "longrope", "--factors", "{t}/short.txt", "--out", "{t}/o"],
        "JSON",
    ),
    "no factors": (["extend", "{m}", "--to", "128", "--method", "longrope", "--out", "{t}/o"], "--factors FILE"),
    "no model": (["info", "{t}/nothing/here"], "hub id"),
    "binary": (["evaluate", "perplexity", "{m}", "{t}/binary.txt", "--length", "64"], "binary.txt"),
    "empty": (["evaluate", "perplexity", "{m}", "{t}/empty.txt", "--length", "64"], "empty.txt"),
    "missing": (["evaluate", "perplexity", "{m}", "{t}/missing.txt", "--length", "64"], "missing.txt"),
    "too short": (["evaluate", "perplexity", "{m}", "{t}/short.txt", "--length", "64"], "64 tokens"),
    "numbers": (["evaluate", "needle", "{m}", "--lengths", "1k"], "commas"),
    "depth": (["evaluate", "needle", "{m}", "--lengths", "64", "--depths", "7"], "7"),
    "dtype": (["generate", "{m}", "--prompt", "x", "--dtype", "bf16"], "bfloat16"),
    "too long": (["generate", "{m}", "--prompt", "x", "--max-tokens", "100"], "64"),
    "temperature": (["generate", "{m}", "--prompt", "x", "--temperature", "-1"], "temperature"),
    "no text": (["generate", "{m}", "--prompt", "-"], "standard input"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case, tiny_folder, tmp_path):
    (tmp_path / "binary.txt").write_bytes(b"PK\x03\x04\x00\x00\x00")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "short.txt").write_text("a few words")
    words, message = BAD[case]
    run(*(word.format(m=tiny_folder, t=tmp_path) for word in words), fails=message)
    assert not (tmp_path / "o").exists()


def test_errors_are_a_paragraph_and_status_two(tmp_path):
    command = [sys.executable, "-m", "handscroll.cli.main", "info", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and "config.json" in done.stderr and "Traceback" not in done.stderr


def test_the_help_of_the_harness_says_how_the_model_is_given_before_that_of_lm_eval(monkeypatch):
    monkeypatch.setattr("handscroll.evaluate.harness.main", lambda arguments: print("lm-eval:", *arguments))
    first, _, second = run("evaluate", "harness", "--help").partition("lm-eval: --help")
    assert "--model_args path=MODEL" in first and second == "\n"
    assert run("evaluate", "harness", "--tasks", "x") == "lm-eval: --tasks x\n"
