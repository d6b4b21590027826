"""`handscroll chat` and `generate --chat`: messages, commands, a prompt on a terminal, readings in the user's turn."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from handscroll.base.errors import HandscrollError
from handscroll.cli.main import app
from handscroll.cli.session import COMMANDS, messages_in
from handscroll.generate.chat import Speaker
from handscroll.lm import load
from tests.tasks.material import tiny

TEMPLATE = (
    "{% for m in messages %}{{ m.role + ':<|endoftext|>' + m.content + '<|endoftext|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:<|endoftext|>' }}{% endif %}"
)


@pytest.fixture(scope="module")
def instruct(stretched_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("instruct") / "model"
    shutil.copytree(stretched_folder, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


def run(*words, said="", fails=None):
    result = CliRunner().invoke(app, [str(word) for word in words], input=said)
    if fails is not None:
        assert isinstance(result.exception, HandscrollError), repr(result.exception)
        assert fails in str(result.exception), str(result.exception)
    else:
        assert result.exit_code == 0, result.output + repr(result.exception)
    return result


def test_lines_are_messages_and_nothing_is_read_twice(instruct):
    done = run("chat", instruct, "--max-tokens", "9", said="import os\nclass Parser:\n")
    lm = load(instruct)
    messages = [{"role": "user", "content": "import os"}]
    first = lm.chat(messages, max_tokens=9)
    second = lm.chat(
        [*messages, {"role": "assistant", "content": first}, {"role": "user", "content": "class Parser:"}], max_tokens=9
    )
    assert done.stdout == f"{first}\n{second}\n"
    counts = [list(map(int, re.findall(r"\d+", line))) for line in re.findall(r"\[.*re-used.*", done.stderr)]
    assert [counts[0][:2], counts[1][:2]] == [[first.prompt, 0], [second.prompt, second.reused]]
    assert "cut (--max-tokens)" in done.stderr


def test_every_command_does_what_it_says(instruct, tmp_path):
    (tmp_path / "a.txt").write_text("def read(path): pass", encoding="utf-8")
    lines = [
        "/help",
        "/system",
        "/system Be brief.",
        "import os",
        "/context",
        f"/save {tmp_path / 'talk.json'}",
        "/undo",
        f"/file {tmp_path / 'a.txt'}",
        "What is this?",
        "/retry",
        "/set temperature 0.8",
        "/set mode x",
        "/set",
        "/retry",
        f"/save {tmp_path / 'other.json'}",
        "/clear",
        f"/load {tmp_path / 'talk.json'}",
        '"""a text',
        'of lines"""',
        "//slash",
        "/exit",
        "not said",
    ]
    done = run("chat", instruct, "--max-tokens", "5", said="\n".join(lines) + "\n")
    for name in COMMANDS:
        assert f"/{name}" in done.stderr
    talk, other = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("talk", "other"))
    assert [one["role"] for one in talk] == ["system", "user", "assistant"] and talk[0]["content"] == "Be brief."
    assert other[1] == {"role": "user", "content": "def read(path): pass\n\nWhat is this?"} and len(other) == 3
    told = (
        "there is no system prompt",
        "of 400 tokens used",
        "taken back; 0",
        "greedy",
        "temperature 0.8",
        "mode x",
        "3 messages are in",
        "the system prompt is kept",
        "3 messages of",
        "20 characters",
    )
    for said in told:
        assert said in done.stderr, said
    assert len(re.findall(r"re-used", done.stderr)) == 6


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/sav x", "save"),
        ("/undo", "no message"),
        ("/load nowhere.json", "no saved conversation"),
        ("/save", "needs a file"),
        ("/file", "needs a file"),
        ("/set temperature hot", "temperature"),
    ],
)
def test_a_wrong_command_is_an_error_with_advice(instruct, line, said):
    run("chat", instruct, said=f"{line}\n", fails=said)


def test_a_document_comes_back_with_its_message(instruct, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"the text {name}", encoding="utf-8")
    lines = [f"/file {tmp_path / 'a.txt'}", "What?", "/retry", "/undo", f"/file {tmp_path / 'b.txt'}", "And?"]
    done = run(
        "chat", instruct, "--max-tokens", "3", said="\n".join([*lines, f"/save {tmp_path / 'c.json'}", "/clear"])
    )
    talk = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    assert talk[0]["content"] == "the text a\n\nthe text b\n\nAnd?" and len(talk) == 2
    assert "the document stands before your next message" in done.stderr
    assert "documents of /file are gone" in done.stderr


def test_only_files_of_this_chat_are_replaced(instruct, tmp_path):
    mine = tmp_path / "notes.txt"
    mine.write_text("my own notes", encoding="utf-8")
    run("chat", instruct, said=f"/save {mine}\n", fails="is not of this chat")
    assert mine.read_text(encoding="utf-8") == "my own notes"
    talk = tmp_path / "talk.json"
    run("chat", instruct, "--max-tokens", "3", said=f"one\n/save {talk}\ntwo\n/save {talk}\n")
    assert len(json.loads(talk.read_text(encoding="utf-8"))) == 4
    run("chat", instruct, "--load", talk, said=f"/undo\n/save {talk}\n")
    assert len(json.loads(talk.read_text(encoding="utf-8"))) == 2
    run("chat", instruct, said=f"/save {tmp_path / 'none' / 'talk.json'}\n", fails="none")


def test_options_that_belong_to_a_template_need_one(instruct, stretched_folder, tmp_path):
    run("chat", instruct, "--raw", "--system", "x", fails="--system")
    assert "chat template" not in run("chat", tiny(tmp_path / "bert"), fails="family 'bert'").stderr
    run("chat", stretched_folder, "--system", "x", fails="no chat template")
    run("chat", instruct, "--template", "rag", fails="'rag'")
    run("chat", instruct, "--set", "enable_thinking", fails="NAME=VALUE")
    done = run("chat", stretched_folder, "--max-tokens", "3", said="import os\n")
    assert "has no chat template" in done.stderr and "re-used" not in done.stderr


def test_a_saved_reading_is_talked_about(instruct, tmp_path):
    text = "import os\n\n\ndef walk(top):\n    for name in os.listdir(top):\n        yield name\n" * 2
    (tmp_path / "a.py").write_text(text, encoding="utf-8")
    where = ["--store", tmp_path / "store"]
    done = run("read", instruct, tmp_path / "a.py", "--save", "code", "--room", "90", *where)
    assert "in a user's turn of the model's chat template" in done.stdout
    done = run("chat", instruct, "--reading", "code", "--max-tokens", "5", *where, said="why?\nhow?\n")
    counts = [list(map(int, re.findall(r"\d+", line))) for line in re.findall(r"\[.*re-used.*", done.stderr)]
    assert all(read < 30 for _, _, read, _ in counts) and len(counts) == 2
    assert run("ask", "code", "why?", "--max-tokens", "5", *where).stdout == done.stdout.splitlines(True)[0]
    kept = f"why?\n/clear\nhow?\n/save {tmp_path / 'talk.json'}\n"
    assert "the document of --reading stands" in run("chat", instruct, "--reading", "code", *where, said=kept).stderr
    talk = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))
    assert talk[0]["content"] == f"{text}\n\nhow?" and len(talk) == 2
    run("read", instruct, tmp_path / "a.py", "--save", "raw", "--raw", "--room", "90", *where)
    run("chat", instruct, "--reading", "raw", *where, fails="plain text")
    (tmp_path / "a.csv").write_text("name,city\nAda,London\n", encoding="utf-8")
    run("read", instruct, tmp_path / "a.csv", "--save", "table", "--raw", "--room", "90", *where)


def test_generate_puts_a_prompt_into_the_template_or_says_that_there_is_one(instruct, monkeypatch):
    lm = load(instruct)
    speaker = Speaker(lm.tokenizer)
    rendered = speaker.render([{"role": "user", "content": "import os"}])
    words = ["generate", instruct, "--max-tokens", "5", "--json", "--prompt"]

    def told(*more):
        done = run(*words, *more)
        return json.loads(done.stdout), done.stderr

    asked, _ = told("import os", "--chat")
    assert asked["prompt_tokens"] == len(rendered.ids)
    assert asked["continuations"][0]["text"] == lm.generate(rendered.ids, max_tokens=5)
    written, note = told(rendered.text)
    assert "--chat" not in note and written["prompt_tokens"] == len(rendered.ids)
    plain, note = told("import os")
    assert "--chat" in note and plain["prompt_tokens"] == len(lm.encode("import os"))
    assert "[cut after 5 tokens: --max-tokens]" in run(*words[:4], "--prompt", "import os", "--chat").stderr
    tokens = asked["continuations"][0]["tokens"]
    first = lm.decode(tokens[: tokens.index(tokens[-1])])
    monkeypatch.setattr(Speaker, "ends", lambda speaker, model: frozenset(tokens[-1:]))
    for prompt, *more in (("import os", "--chat"), (rendered.text,)):  # an answer ends where the template ends a turn
        ended = told(prompt, *more)[0]["continuations"][0]
        assert ended["finish"] == "eos" and ended["text"] == first
    inside, _ = told("user:<|endoftext|>x")
    assert inside["prompt_tokens"] == len(lm.encode("user:<|endoftext|>x"))


def test_a_terminal_shows_a_prompt_and_errors_end_only_the_turn(instruct):
    inner, outer = pty.openpty()
    code = "from handscroll.cli.main import main; main()"
    command = [sys.executable, "-c", code, "chat", str(instruct), "--max-tokens", "4"]
    ends = {"stdin": outer, "stdout": outer, "stderr": outer, "env": os.environ | {"TERM": "dumb"}}
    # What runs in the background of a shell ignores Ctrl-C, and its children too.
    with subprocess.Popen(command, **ends, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as run_:
        os.close(outer)
        shown = b""
        while b"> " not in shown:
            shown += os.read(inner, 4096)
        os.write(inner, b"a line that is tak")
        while b"/exit leaves" not in shown:  # a signal between two waits of readline is seen at the next letter
            if select.select([inner], [], [], 0.2)[0]:
                shown += os.read(inner, 4096)
            else:
                run_.send_signal(signal.SIGINT)
        os.write(inner, b"/nothing\nimport os\n/exit\n")
        try:
            while piece := os.read(inner, 4096):
                shown += piece
        except OSError:  # the other side is gone
            pass
        assert run_.wait(timeout=60) == 0
    os.close(inner)
    text = shown.decode()
    assert text.count("> ") >= 4 and "unknown command '/nothing'" in text and "re-used" in text


def test_texts_of_several_lines():
    lines = iter(["one\n", "\n", '"""two\n', " three\n", '"""\n', '"""four"""\n', '"""open\n', "end"])
    assert list(messages_in(lines)) == ["one", "two\n three", "four", "open\nend"]
