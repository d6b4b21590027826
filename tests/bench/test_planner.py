"""`bench.planner` refuses options that would do nothing, and takes up what was measured with as many threads."""

import json

import pytest

from bench import planner


@pytest.fixture
def parsed(monkeypatch):
    def run(*more):
        monkeypatch.setattr("sys.argv", ["planner", *more])
        return planner.arguments()

    return run


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--device", "cuda"], "give --seed N"),
        (["--device", "cuda", "--seed", "0", "--only", "llama"], "--only has no meaning with --device cuda"),
        (["--device", "cuda", "--seed", "0", "--json", "file"], "--json has no meaning"),
        (["--device", "cuda", "--seed", "0", "--threads", "2"], "--threads has no meaning"),
        (["--device", "cuda", "--seed", "0", "--families", "llama"], "--families has no meaning"),
        (["--device", "cuda", "--seed", "0", "--probe"], "--probe has no meaning"),
        (["--runs", "3"], "--runs draws configurations, which needs --seed N"),
        (["--families", "bert"], "--families draws configurations"),
        (["--seed", "1", "--families", "bert,elmo"], "elmo is not drawn"),
    ],
)
def test_options_that_would_do_nothing_are_refused(parsed, capsys, given, told):
    with pytest.raises(SystemExit):
        parsed(*given)
    assert told in capsys.readouterr().err


def test_what_is_not_given_has_its_default(parsed):
    options = parsed("--seed", "0")
    assert (options.runs, options.families, options.threads, options.only) == (64, planner.FAMILIES, 0, "")
    assert parsed("--device", "cuda", "--seed", "0", "--runs", "5").runs == 5


def test_a_run_with_other_threads_is_measured_again(tmp_path):
    path = tmp_path / "runs.jsonl"
    lines = [{"line": "a", "threads": 1, "peak": 1}, {"line": "a", "threads": 2, "peak": 2}, {"line": "b", "peak": 3}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert planner.kept(path, 2) == {"a": lines[1]} and planner.kept(None, 2) == {}
    assert planner.kept(tmp_path / "new.jsonl", 2) == {}
