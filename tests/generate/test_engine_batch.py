"""`handscroll batch`: the answers of `generate`, in order, after any interruption; bad lines are named before a run."""

import pytest
import torch
from typer.testing import CliRunner

from handscroll.base.errors import CapacityError, ConfigError, DataError, HandscrollError
from handscroll.cli.main import app
from handscroll.extend.story import STARTER
from handscroll.generate.constrain import Constraint, Progress
from handscroll.generate.engine import batch as module
from handscroll.generate.engine.batch import answer, read_requests
from handscroll.generate.engine.engine import Engine
from handscroll.lm import load
from tests.generate.batches import records, run, write
from tests.naming import naming

LINES = [
    {"prompt": "import os\n", "max_tokens": 20},
    {"prompt": "def walk(top):", "max_tokens": 12, "temperature": 0.9, "top_p": 0.9, "seed": 3},
    {"prompt": "class", "max_tokens": 3, "priority": 5},
    {"prompt": "for name in", "max_tokens": 30, "temperature": 1.5, "stop": list("etaoins \n")},
    {"prompt": "(", "max_tokens": 5, "ignore_eos": True},
    {"prompt": "你好", "max_tokens": 9, "repetition_penalty": 1.3},
]


@pytest.mark.parametrize("mode", [[], ["--deterministic"]])
def test_every_answer_is_that_of_generate(tiny_folder, tmp_path, mode):
    requests, out = write(tmp_path / "requests.jsonl", LINES), tmp_path / "answers.jsonl"
    assert "6 answers" in run("batch", tiny_folder, requests, "--out", out, *mode)
    lm, found = load(tiny_folder), records(out)
    assert [one["line"] for one in found] == [1, 2, 3, 4, 5, 6]
    for line, one in zip(LINES, found, strict=True):
        settings = {name: value for name, value in line.items() if name not in ("prompt", "priority")}
        assert one["text"] == lm.generate(line["prompt"], **settings)
        assert one["logprob"] < 0 and 1 <= one["tokens"] <= line["max_tokens"]
    assert found[3]["finish"] == "stop" and found[2]["finish"] in ("length", "eos")


def test_a_line_may_have_a_grammar_and_ask_for_log_probabilities(tmp_path):
    lines = [
        {"prompt": "x = ", "max_tokens": 6, "regex": "[0-9]{3}", "logprobs": 2},
        {"prompt": "y = ", "max_tokens": 9, "choices": ["yes", "no"]},
        {"prompt": "z = ", "max_tokens": 40, "json_schema": {"type": "integer"}, "temperature": 0.7},
        {"prompt": "x = ", "max_tokens": 6, "regex": "[0-9]{3}"},
    ]
    out = tmp_path / "a.jsonl"
    run("batch", STARTER, write(tmp_path / "r.jsonl", lines), "--out", out, "--dtype", "float32")
    found = records(out)
    assert found[0]["text"] == found[3]["text"] and len(found[0]["text"]) == 3 and found[0]["text"].isdigit()
    assert found[1]["text"] in ("yes", "no") and int(found[2]["text"]) is not None
    (want,) = load(STARTER, dtype="float32").continuations("x = ", logprobs=2, max_tokens=6, constraint=_digits())
    assert [[pair["id"] for pair in one["top"]] for one in found[0]["logprobs"]] == [
        [pair[0] for pair in one.top] for one in want.scored
    ]
    assert "logprobs" not in found[3]
    wrong = write(tmp_path / "w.jsonl", [lines[0] | {"choices": ["a"]}, {"prompt": "x", "regex": "("}])
    run("batch", STARTER, wrong, "--out", tmp_path / "b", fails="2 of 2 lines")


def _digits():
    return Constraint.regex("[0-9]{3}", load(STARTER).tokenizer)


def test_a_run_that_was_killed_goes_on(tiny_folder, tmp_path, monkeypatch):
    requests, out = write(tmp_path / "requests.jsonl", LINES), tmp_path / "answers.jsonl"
    run("batch", tiny_folder, requests, "--out", out)
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    answered = []
    real = Engine.submit
    monkeypatch.setattr(Engine, "submit", lambda *a, **k: (answered.append(a[1]), real(*a, **k))[1])
    for kept, tail in ((0, b""), (3, b""), (3, lines[3][:10]), (5, lines[5][:-1]), (6, b"")):
        out.write_bytes(b"".join(lines[:kept]) + tail)
        answered.clear()
        text = run("batch", tiny_folder, requests, "--out", out)
        assert out.read_bytes() == whole and len(answered) == 6 - kept
        assert (f"{kept} of them from before" in text) == (kept > 0)
    write(requests, [*LINES[:2], {"prompt": "another", "max_tokens": 3}, *LINES[3:]])
    run("batch", tiny_folder, requests, "--out", out, fails="line 3")
    run("batch", tiny_folder, requests, "--out", out, "--deterministic", fails="line 1")
    write(requests, LINES[:4])
    run("batch", tiny_folder, requests, "--out", out, fails="6 answers")
    assert out.read_bytes() == whole


def test_answers_are_written_while_later_ones_are_open(tiny_folder, tmp_path, monkeypatch):
    """At most AHEAD requests are open, and what `on_answer` counts is in the file."""
    monkeypatch.setattr(module, "AHEAD", 3)
    lm = load(tiny_folder)
    engine = Engine(lm.model, lm.tokenizer, blocks=30, block=8)
    lines = [{"prompt": "x" * (1 + n % 7), "max_tokens": 1 + n % 9} for n in range(30)]
    asked = read_requests(write(tmp_path / "r.jsonl", lines), engine, lm.tokenizer)
    out, seen = tmp_path / "a.jsonl", []

    def on_answer(done):
        assert len(records(out)) == done
        assert len(engine._scheduler.waiting) + len(engine._scheduler.running) <= 3
        seen.append(done)

    answer(asked, engine, lm.tokenizer, out, on_answer)
    assert seen == sorted(seen) and len(seen) > 5 and seen[-1] == 30
    assert engine.idle and engine.blocks.available == 30


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "line 2: "),
        (b"", "line 2: "),
        (b'"text"', "line 2: "),
        (b'{"prompt": "\xff"}', "line 2: "),
        (b'{"promt": "x"}', "line 2: "),
        (b'{"max_tokens": 3}', "line 2: prompt"),
        (b'{"prompt": 3}', "line 2: prompt"),
        (b'{"prompt": ""}', "line 2: prompt 2"),
        (b'{"prompt": "\\ud800"}', "line 2: "),
        (b'{"prompt": "x", "stop": ["\\uD800"]}', "line 2: half a surrogate pair"),
        (b'{"prompt": "x", "choices": ["\\udfff"]}', "line 2: half a surrogate pair"),
        (b'{"prompt": "x", "regex": "\\ud800"}', "line 2: half a surrogate pair"),
        (b'{"prompt": "x", "json_schema": {"\\ud800": {"a": 1}}}', "line 2: half a surrogate pair"),
        (b'{"prompt": "x", "max_tokens": 0}', "line 2: max_tokens"),
        (b'{"prompt": "x", "temperature": NaN}', "line 2: temperature"),
        (b'{"prompt": "x", "top_p": 0.5}', "line 2: "),
        (b'{"prompt": "x", "max_tokens": 64}', "line 2: prompt 2"),
    ],
)
def test_bad_lines_are_refused_before_anything_runs(tiny_folder, tmp_path, line, words):
    requests, out = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    requests.write_bytes(b'{"prompt": "x", "max_tokens": 2}\n' + line + b"\n" + line + b"\n")
    run("batch", tiny_folder, requests, "--out", out, fails=words)
    run("batch", tiny_folder, requests, "--out", out, fails="2 of 3 lines")
    run("batch", tiny_folder, requests, "--out", out, fails=words.replace("2", "3"))
    assert not out.exists()


def test_many_bad_lines_are_counted(tiny_folder, tmp_path):
    requests = write(tmp_path / "requests.jsonl", [{"prompt": "x", "max_tokens": -1}] * 20)
    run("batch", tiny_folder, requests, "--out", tmp_path / "a", fails="15")


def test_other_wrong_use(tiny_folder, tmp_path):
    requests = write(tmp_path / "requests.jsonl", LINES)
    run("batch", tiny_folder, tmp_path / "none", "--out", tmp_path / "a", fails="none")
    run("batch", tiny_folder, write(tmp_path / "empty", []), "--out", tmp_path / "a", fails="empty")
    run("batch", tiny_folder, requests, "--out", tmp_path, fails=str(tmp_path))
    run("batch", tiny_folder, requests, "--out", tmp_path / "a", "--memory", "nan", fails="nan")
    run("batch", tiny_folder, requests, "--out", tmp_path / "a", "--memory", "1e-6", fails="block")
    run("batch", tiny_folder, requests, "--out", tmp_path / "a", "--memory", "1e9", fails="free")
    run("batch", tiny_folder, requests, "--out", tmp_path / "a", "--memory", "1.3e-5", fails="lines")
    text = write(tmp_path / "long", [{"prompt": "x", "max_tokens": 62}])
    lm = load(tiny_folder)
    with pytest.raises(DataError, match=naming("line 1", "prompt 1", "62 tokens")):
        read_requests(text, Engine(lm.model, blocks=1), lm.tokenizer)
    assert issubclass(CapacityError, HandscrollError) and issubclass(ConfigError, HandscrollError)
    assert torch.is_grad_enabled()


def test_messages_go_through_the_chat_template(tiny_folder, tmp_path):
    lm = load(tiny_folder)
    lm.tokenizer.settings["chat_template"] = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    engine = Engine(lm.model, lm.tokenizer, blocks=64)
    lines = [{"messages": [{"role": "user", "content": "import"}], "max_tokens": 3}, {"prompt": "x", "max_tokens": 3}]
    first, second = read_requests(write(tmp_path / "r.jsonl", lines), engine, lm.tokenizer)
    assert list(first.request.prompt) == lm.tokenizer.encode("user: import\n", special=False)
    assert second.request.ends is None
    for wrong, said in (
        ({"max_tokens": 3}, "prompt or messages"),
        ({"prompt": "x", "messages": []}, "one of them"),
        ({"prompt": "x", "tools": []}, "tools belong"),
        ({"messages": []}, "list of messages"),
    ):
        with pytest.raises(DataError, match=said):
            read_requests(write(tmp_path / "w.jsonl", [wrong]), engine, lm.tokenizer)


def test_a_machine_without_memory_answers_no_line(tiny_folder, tmp_path, monkeypatch):
    """The lines are asked again when the run goes on."""

    def allowed(progress):
        raise MemoryError

    monkeypatch.setattr("handscroll.generate.constrain.Progress.allowed", allowed)
    requests = write(tmp_path / "requests.jsonl", [{"prompt": "a = ", "max_tokens": 9, "regex": "[0-9]{5}"}])
    out = tmp_path / "answers.jsonl"
    result = CliRunner().invoke(app, ["batch", str(tiny_folder), str(requests), "--out", str(out)])
    assert isinstance(result.exception, MemoryError) and not records(out)


@pytest.mark.parametrize(
    "error, said", [(DataError("a dead end"), "a dead end"), (RuntimeError("a bug"), "RuntimeError: a bug")]
)
def test_a_line_that_cannot_be_answered_leaves_the_others_alone(tiny_folder, tmp_path, monkeypatch, error, said):
    """Here its grammar leads to a dead end in the middle; the other lines, and a second run, go on."""
    calls, real = [], Progress.allowed

    def allowed(progress):
        calls.append(progress)
        if len(calls) == 3:
            raise error
        return real(progress)

    monkeypatch.setattr("handscroll.generate.constrain.Progress.allowed", allowed)
    lines = [LINES[0], {"prompt": "a = ", "max_tokens": 9, "regex": "[0-9]{5}"}, LINES[2]]
    requests, out = write(tmp_path / "requests.jsonl", lines), tmp_path / "answers.jsonl"
    result = CliRunner().invoke(app, ["batch", str(tiny_folder), str(requests), "--out", str(out)])
    assert result.exit_code == 0 and "2 answers" in result.stdout
    assert "1 lines could not be answered (2)" in result.stderr
    found = records(out)
    assert found[1]["error"] == said and [one["line"] for one in found] == [1, 2, 3]
    assert found[0]["text"] and found[2]["text"] and "text" not in found[1]
    assert "3 of them from before" in run("batch", tiny_folder, requests, "--out", out)
