"""Budgets of bytes and tables of policies from the command line; what is approximate is said, after what is refused."""

import json
import re

import pytest
from typer.testing import CliRunner

from handscroll.base.errors import CapacityError, ConfigError
from handscroll.cli.main import app

TEXT = "import os\n\n\ndef walk(top):\n    for name in os.listdir(top):\n        yield os.path.join(top, name)\n\n" * 4


def run(*words, fails=None, **options):
    done = CliRunner().invoke(app, [str(word) for word in words], **options)
    if fails is None:
        assert done.exit_code == 0, done.output + repr(done.exception)
    else:
        assert isinstance(done.exception, ConfigError | CapacityError), done.output + repr(done.exception)
        assert fails in str(done.exception)
    return done


@pytest.fixture(autouse=True)
def _short_tails(monkeypatch):
    monkeypatch.setattr("handscroll.generate.budget.TAIL", 16)


@pytest.fixture
def command(tiny_folder):
    return ["generate", tiny_folder, "--prompt", TEXT, "--max-tokens", "6", "--beyond"]


def test_a_budget_is_announced_and_told(command):
    done = run(*command, "--kv-budget", "60%")
    assert "approximate: --kv-budget: int8 takes" in done.stderr and "KL mean" in done.stderr
    assert done.stdout == run(*command, "--cache", "int8").stdout
    exact = run(*command, "--kv-budget", "1GiB")
    assert "approximate" not in exact.stderr and exact.stdout == run(*command).stdout
    told = json.loads(run(*command, "--kv-budget", "60%", "--json").stdout)["cache"]
    assert told["policy"] == "int8" and not told["exact"] and told["bytes"] <= told["budget"] < told["full"]
    assert told["loss"]["kl"] == min(one["kl"] for one in told["tried"]) and told["tasks"] == {}
    assert json.loads(run(*command, "--kv-budget", "1GiB", "--json").stdout)["cache"]["exact"]


def test_what_was_evicted_is_told_too(command):
    command += ["--kv-budget", "45%", "--kv-guard", "5", "--dtype", "bfloat16"]
    done = run(*command)
    policy = re.search(r"--kv-budget: (\w+:budget=(\d+)) takes", done.stderr)
    assert policy and f"--cache {policy[1]}: {policy[2]} of" in done.stderr
    told = json.loads(run(*command, "--json").stdout)["cache"]
    assert told["policy"] == policy[1] and "the others were evicted" in told["report"]


def test_settings_that_exclude_each_other(command, tiny_folder):
    run(*command, "--kv-budget", "50%", "--cache", "int8", fails="--cache int8")
    run(*command, "--kv-budget", "50%", "--cache", "full", fails="--cache full")
    run(*command, "--kv-budget", "50%", "--beams", "2", fails="--beams")
    run(*command, "--kv-guard", "1", fails="--kv-budget")
    run(*command, "--kv-budget", "2%", fails="64 tokens")
    run(*command, "--kv-budget", "60%", "--kv-guard", "0", fails="guard")
    run("chat", tiny_folder, "--kv-guard", "1", fails="--kv-budget")


def test_nothing_is_announced_before_it_is_refused(command):
    for cache, words in (("h2o", "budget"), ("h2o:budget=1", "64"), ("int9", "int8")):
        assert "approximate" not in run(*command, "--cache", cache, fails=words).stderr
    assert "approximate" not in run(*command, "--cache", "int4", "--samples", "2", fails="'int4'").stderr


def test_the_recall_of_a_retrieval_is_told_with_json_and_constraints(command):
    policy = "retrieval:block=32,blocks=1,recent=32,measure=1"
    told = json.loads(run(*command, "--cache", policy, "--json").stdout)["cache"]
    assert told["policy"] == policy and not told["exact"] and "recall of the attention mass" in told["report"]
    assert "recall of the attention mass" in run(*command, "--cache", policy, "--choice", "abc").stderr
    assert "cache" not in json.loads(run(*command, "--json").stdout)


def test_chat_stays_within_its_budget(stretched_folder):
    words = ["chat", stretched_folder, "--max-tokens", "4"]
    done = run(*words, "--kv-budget", "40%", "--kv-guard", "9", input="import os, sys, re, json\n" * 14)
    assert done.stderr.count("outgrow the budget") == 1
    assert "outgrow" not in run(*words, "--kv-budget", "100%", input="import os, sys, re, json\n" * 14).stderr


def test_readings_stay_within_a_budget(stretched_folder, tmp_path):
    (tmp_path / "walk.py").write_text(TEXT)
    words = ["read", stretched_folder, tmp_path / "walk.py", "--store", tmp_path / "kept", "--room", "40"]
    asked = ["ask", "it", "What?", "--store", tmp_path / "kept", "--max-tokens", "4"]
    done = run(*words, "--save", "it", "--kv-budget", "60%")
    assert "approximate: --kv-budget: int8 takes" in done.stderr
    within = run(*asked, "--kv-budget", "60%").stdout
    assert within == run(*asked).stdout
    run(*asked, "--kv-budget", "20%", fails="'int8'")
    assert "approximate" not in run(*words, "--save", "all", "--kv-budget", "100%").stderr
    run(*words, "--save", "it", "--kv-budget", "60%", "--cache", "int8", fails="--cache int8")
    run(*words, "--save", "it", "--kv-budget", "30%", "--kv-guard", "9", fails="room")  # nothing that evicts is kept
    run(*words, "--save", "it", "--kv-guard", "1", fails="--kv-budget")


def test_readings_of_rounded_weights(stretched_folder, tmp_path):
    (tmp_path / "walk.py").write_text(TEXT)
    words = ["read", stretched_folder, tmp_path / "walk.py", "--store", tmp_path / "kept", "--save", "it"]
    asked = ["ask", "it", "What?", "--store", tmp_path / "kept", "--max-tokens", "4"]
    done = run(*words, "--room", "40", "--weights", "int8")
    assert "approximate: --weights int8" in done.stderr
    assert "approximate: --weights int8" in run(*asked, "--weights", "int8").stderr
    run(*asked, fails="--weights")


def test_batches_stay_within_a_budget(stretched_folder, tmp_path):
    (tmp_path / "asked.jsonl").write_text('{"prompt": "import os", "max_tokens": 4}\n')
    words = ["batch", stretched_folder, tmp_path / "asked.jsonl"]
    run(*words, "--out", tmp_path / "a.jsonl", "--kv-budget", "50%")
    run(*words, "--out", tmp_path / "b.jsonl", "--memory", "0.1")
    assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "b.jsonl").read_text()
    run(*words, "--out", tmp_path / "c.jsonl", "--kv-budget", "50%", "--memory", "1", fails="--memory")
    run(*words, "--out", tmp_path / "c.jsonl", "--kv-budget", "1KiB", fails="holds no block")


def test_policies_are_evaluated(tiny_folder, tmp_path):
    (tmp_path / "walk.py").write_text(TEXT * 5)
    words = ["evaluate", "policies", tiny_folder, tmp_path / "walk.py", "--length", "160", "--windows", "1"]
    words += ["--samples", "1", "--budgets", "50", "--policies", "int8,sinks"]
    done = run(*words, "--json", tmp_path / "rows.jsonl", "--report", tmp_path / "report")
    record = json.loads((tmp_path / "rows.jsonl").read_text())
    assert [row["policy"] for row in record["rows"]] == ["full", "int8", "sinks:budget=80"]
    row = record["rows"][2]
    assert re.search(rf"sinks +50\.0% +{row['freed']:.1%} +{row['kept_promise']:.0%} +{row['kl']:.1e}", done.stdout)
    assert "not measurable" in done.stdout and f"tokens, {record['dtype']};" in done.stdout
    assert "Cache policies" in (tmp_path / "report" / "report.html").read_text()
    run(*words[:-1], "int9", fails="'int8'")
    run(*words[:4], "--length", "160", "--budgets", "12.5", fails="64")
    run(*words[:4], "--budgets", "half", fails="commas")
