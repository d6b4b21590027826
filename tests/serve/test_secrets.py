"""Planted words: in every place of a request that may hold a secret, and then nowhere that others read; and paths that
lead out of their folder."""

import logging
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from openai import OpenAIError

from handscroll.serve.keys import make_key
from tests.serve import material


@pytest.fixture(scope="module")
def keyed(served_models, tmp_path_factory):
    """A server with a key; a word lies beside its store."""
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "outside.txt").write_text("planted-outside")
    key = make_key(folder / "keys.toml", "ann")
    models, limits = {"tiny": served_models["tiny"]}, {"documents": 10_000, "waiting": 64}
    with material.live(folder / "store", models, key, keys=folder / "keys.toml", room=200, limits=limits) as made:
        yield made


class Planted:
    """Words that look like secrets, one for each place that asks for one."""

    def __init__(self):
        self.words: dict[str, str] = {}

    def __call__(self, place: str) -> str:
        return self.words.setdefault(place, f"hs-planted-{len(self.words):02}-{os.urandom(6).hex()}")


def said_everywhere(server, planted: Planted) -> str:
    """Send each word to its place, in requests that are answered and in requests that fail; returns the document."""
    http, say = server.http, lambda place: {"role": "user", "content": planted(place)}
    made = http.post(
        "/v1/documents", files={"file": (f"{planted('name of a file')}.txt", planted("document").encode())}
    )
    number = made.json()["id"]
    material.read(server, number)
    tools = [{"type": "function", "function": {"name": "look", "description": planted("tool"), "parameters": {}}}]
    schema = {"type": "object", "title": planted("schema")}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    chat, text = "/v1/chat/completions", "/v1/completions"
    base = {"model": "tiny", "max_tokens": 2}
    sent = [
        (chat, base | {"messages": [{"role": "system", "content": planted("system")}, say("message")]}),
        (chat, base | {"messages": [say("message")], "tools": tools, "user": planted("user")}),
        (chat, base | {"messages": [say("message")], "response_format": form, "max_tokens": 40}),
        (chat, base | {"messages": [say("message")], "chat_template_kwargs": {planted("variable"): 1}}),
        (text, base | {"prompt": planted("prompt"), "stop": [planted("stop")], "suffix": planted("suffix")}),
        (text, base | {"prompt": planted("long prompt") * 1000}),
        (text, base | {"prompt": planted("prompt"), planted("field"): 1}),
        (text, base | {"prompt": "a", "model": planted("model")}),
        (text, base | {"prompt": "a", "max_tokens": planted("number")}),
        (f"/v1/documents/{number}/ask", {"question": planted("question"), "max_tokens": 2}),
        (f"/v1/documents/{planted('id')}/ask", {"question": "a"}),
        ("/v1/tokenize", {"model": "tiny", "text": planted("tokenized")}),
        ("/v1/count", {"model": "tiny", "text": planted("counted")}),
        (f"/{planted('path')}", {}),
    ]
    for path, body in sent:
        assert http.post(path, json=body).status_code < 500, path
    http.post(text, content=f'{{"prompt": "{planted("broken")}', headers={"Content-Type": "application/json"})
    http.get("/v1/models", params={"key": planted("query")}, headers={"Cookie": planted("cookie")})
    for name, header in (("another key", "Bearer"), ("another scheme", "Basic")):
        refused = httpx2.get(f"{server.url}/v1/models", headers={"Authorization": f"{header} {planted(name)}"})
        assert refused.status_code == 401
    httpx2.get(f"{server.url}/", headers={"Host": planted("host"), "Origin": planted("origin")})
    return number


@pytest.mark.promise("R33")
def test_what_was_planted_is_in_no_log_no_metric_and_after_deletion_on_no_disk(keyed, caplog, monkeypatch):
    planted = Planted()
    planted.words["key"] = keyed.key
    with caplog.at_level(logging.DEBUG):
        number = said_everywhere(keyed, planted)
        monkeypatch.setattr(keyed.engine, "_read_chunk", lambda *given: 1 // 0)  # an error, with its traceback
        with pytest.raises(OpenAIError):
            keyed.openai.completions.create(model="tiny", prompt=planted("failing prompt"), max_tokens=2)
        monkeypatch.undo()
    own = [one for one in caplog.records if not one.name.startswith(("httpx", "httpcore", "openai"))]
    lines = [logging.Formatter().format(one) for one in own]  # with tracebacks
    assert len(planted.words) >= 25 and any("ZeroDivisionError" in line for line in lines)
    metrics = keyed.http.get("/metrics").text + keyed.http.get("/openapi.json").text
    for place, word in planted.words.items():
        assert not [line for line in lines if word in line], place
        assert word not in metrics, place
        assert not [one for one in sys.argv if word in one] and word not in os.environ.values()
    store = keyed.serving.settings.store
    found = {place for place, word in planted.words.items() if stored(store, word)}
    assert found <= {"document", "name of a file"} and "document" in found
    assert keyed.http.delete(f"/v1/documents/{number}").status_code == 200
    assert not [place for place, word in planted.words.items() if stored(store, word)]


def stored(folder: Path, word: str) -> list[Path]:
    """The files under a folder that hold a word, or have it in their names."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [file for file in files if word in file.name or word.encode() in file.read_bytes()]


_opened: list[str] | None = None  # names of files that this process opens, while somebody wants to know


def _note(event: str, given: tuple) -> None:
    if _opened is not None and event == "open" and isinstance(given[0], str | bytes):
        _opened.append(os.fsdecode(given[0]))


@contextmanager
def noted():
    """The names of the files that are opened within the block. A hook stays for the life of the process."""
    global _opened
    sys.addaudithook(_note)
    _opened = []
    try:
        yield _opened
    finally:
        _opened = None


STEPS = (
    "..",
    "%2e%2e",
    "%252e%252e",
    "..%00",
    ".%2e",
    "..;",
    "....",
    "~",
    "..\\",
    "%c0%ae%c0%ae",
    "\u2025",
    "\uff0e\uff0e",
)
ENDS = ("outside.txt", "store/salt", "keys.toml", "etc/passwd", "proc/self/environ")
PATHS = [
    f"{start}{between.join([step] * deep)}{between}{end}"
    for step in STEPS
    for between, deep in (("/", 1), ("/", 3), ("%2f", 2), ("%5c", 2))
    for start in ("", "/", "file:///")
    for end in ENDS
][::3]


@pytest.mark.promise("R31")
def test_no_name_leads_out_of_its_folder(keyed, tmp_path_factory):
    """Two hundred paths in every place that takes a name: nothing outside is read, and no file is made."""
    assert len(PATHS) >= 200
    store = keyed.serving.settings.store
    around = {file for file in store.parent.rglob("*") if store not in file.parents}
    salt = (store / "salt").read_bytes()
    asked = {"max_tokens": 1, "messages": [{"role": "user", "content": "a"}]}
    with noted() as opened:
        for number, path in enumerate(PATHS):
            answers = [
                keyed.http.get(f"/page/{path}"),
                keyed.http.get(f"/v1/models/{path}"),
                keyed.http.get(f"/v1/documents/{path}"),
                keyed.http.post("/v1/chat/completions", json=asked | {"model": "tiny", "document": path}),
            ]
            if number % 100 == 0:  # each starts a process
                answers.append(keyed.http.post("/v1/documents", files={"file": (path, b"a text")}))
                assert answers.pop().status_code in (201, 415, 422)
            for one in answers:
                assert one.status_code in (400, 404, 405, 422), (path, one.request.url, one.text)
                assert b"planted-outside" not in one.content and salt not in one.content
    assert opened
    outside = [one for one in opened if Path(one).name in ("outside.txt", "passwd", "environ", "salt", "keys.toml")]
    assert outside == []
    assert {file for file in store.parent.rglob("*") if store not in file.parents} == around
