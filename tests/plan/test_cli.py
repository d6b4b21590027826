"""`handscroll plan` from the command line."""

import json
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from handscroll.base.errors import DataError
from handscroll.cli.main import app
from handscroll.plan.calibration import Calibration, save_calibration

RECIPE = "recipes/tiny/llama.toml"


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for threads in (0, 2):
        save_calibration(Calibration(threads=2), path=None if threads else tmp_path / "unused.json")


def run(*words: str) -> str:
    done = CliRunner().invoke(app, ["plan", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_recipe_is_planned():
    text = run("train", RECIPE)
    assert "verdict: fits" in text and "strategy=checkpoint" in text
    assert "2      8 x 64" in text


def test_a_plan_refuses_the_text_that_the_run_refuses(tmp_path):
    (tmp_path / "short.txt").write_text("too short\n" * 5)
    words = ["plan", "train", RECIPE, "--set", f"text.files=['{tmp_path}/short.txt']"]
    refused = CliRunner().invoke(app, [*words, "--set", f"validation.files=['{tmp_path}/short.txt']"])
    assert isinstance(refused.exception, DataError), refused.output
    absent = CliRunner().invoke(app, ["plan", "train", RECIPE, "--set", "text.files=['nowhere/*.txt']"])
    assert isinstance(absent.exception, DataError) and "nowhere" in str(absent.exception)
    assert "verdict: fits" in run(*words[1:], "--without-text")


def test_a_run_that_cannot_fit_says_what_would(monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1 << 40))  # for offloading
    text = run("train", RECIPE, "--without-text", "--set", "stages.1.length=8388608", "--set", "memory.strategy=plain")
    assert "verdict: does not fit" in text and "This fits" in text


def test_json_holds_the_same():
    record = json.loads(run("train", RECIPE, "--json"))
    assert record["fits"] and len(record["stages"]) == 2
    stage = record["stages"][1]
    assert stage["host"] == sum(stage["parts"].values())
    assert stage["workload"]["strategy"] == "plain"


def test_a_checkpoint_is_planned(tiny_folder):
    assert "verdict: fits" in run("extend", str(tiny_folder), "--to", "256", "--lora", "4", "--text", __file__)
    record = json.loads(run("generate", str(tiny_folder), "--prompt-tokens", "100", "--max-tokens", "29", "--json"))
    assert record["stages"][0]["parts"]["cache"] == 2 * 2 * 128 * 2 * 12 * 4
    words = ["generate", str(tiny_folder), "--prompt-tokens", "100", "--max-tokens", "29", "--json"]
    record = json.loads(run(*words, "--cache", "int8"))
    assert record["stages"][0]["parts"]["cache"] == 2 * 2 * 128 * 2 * (12 + 4)
    record = json.loads(run("serve", str(tiny_folder), "--context", "128", "--slots", "3", "--json"))
    assert record["stages"][0]["parts"]["cache"] == 3 * 2 * 2 * 128 * 2 * 12 * 4


CUDA = ["train", RECIPE, "--without-text", "--set", "device=cuda"]


def test_a_run_on_a_gpu_is_held_against_the_bytes_of_the_card(monkeypatch):
    monkeypatch.setattr("handscroll.train.planned.card_bytes", lambda: 8_000_000_000)
    text = run(*CUDA)
    assert "verdict: fits" in text and "7,760 MB of 8,000 MB of GPU memory" in " ".join(text.split())
    monkeypatch.setattr("handscroll.train.planned.card_bytes", lambda: 900_000_000)
    text = " ".join(run(*CUDA).split())
    assert "verdict: does not fit" in text and "the GPU has 900 MB" in text


def test_a_run_on_a_gpu_is_forecast_where_no_card_is_seen(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    text = " ".join(run(*CUDA).split())
    assert "no GPU was seen" in text and "does not fit" not in text and "time: about" in text
    record = json.loads(run(*CUDA, "--json"))
    assert record["fits"] is None and record["machine"]["gpu"] is None and record["stages"][0]["gpu"] > 0
    long = run(
        *CUDA, "--set", "stages.1.length=8388608", "--set", "memory.strategy=plain", "--set", "loop.keep=99999999"
    )
    assert "verdict: does not fit" in long, "what the host lacks is still refused"
