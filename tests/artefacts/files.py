"""Artefacts that are documents, tables, recipes, records and requests."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import ipc, parquet

from handscroll.data.table.read import read_table
from handscroll.generate.engine.batch import read_requests
from handscroll.lm import load
from handscroll.text.readers import read
from tests.artefacts.room import USER, Act, Room, Zoo, command, each, same
from tests.artefacts.templates import GLOBALS, TEMPLATES
from tests.report.material import perplexity
from tests.text.documents import paragraph, write_docx, write_epub, write_pdf

ZOO: Zoo = {}


def script(room: Room, write: Callable[[Room], Any]) -> Act:
    write(room)
    return lambda: list(read([room.path]))


def archive(path: Path, **parts: str) -> None:
    with zipfile.ZipFile(path, "w") as out:
        for name, content in parts.items():
            out.writestr(name.replace("__", "/"), content)


def pdf(room: Room, action: str) -> None:
    write_pdf(room.path / "a.pdf", [[(72, 700, "Text")]])
    data = (room.path / "a.pdf").read_bytes()
    (room.path / "a.pdf").write_bytes(data.replace(b"/Type /Catalog", b"/Type /Catalog " + action.encode()))


OUTSIDE = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>'
LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
BOMB = f'<!DOCTYPE x [<!ENTITY l0 "lol">{LAUGHS}]><x>&l11;</x>'
LINK = '<a:Relationships xmlns:a="r"><a:Relationship TargetMode="External" Target="http://127.0.0.1:9/x"/></a:Relationships>'
HTML = (
    "<script>fetch('http://127.0.0.1:9/')</script><iframe src='file:///etc/passwd'></iframe><p onclick='x()'>Text</p>"
)
META = "<meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'><link rel=import href=//127.0.0.1:9/><p>Text"
DOCUMENTS: dict[str, Callable[[Room], Any]] = {
    "html with scripts": lambda room: room.file("a.html", HTML),
    "html that leads away": lambda room: room.file("a.html", META),
    "svg": lambda room: room.file("a.html", f"<svg onload='x()'><use href='http://127.0.0.1:9/'/></svg>{BOMB}Text"),
    "docx with macros": lambda room: write_docx(room.path / "a.docx", paragraph("Text")) or vba(room),
    "docx with a field": lambda room: write_docx(room.path / "a.docx", paragraph("{ DDEAUTO cmd '/c calc' }")),
    "docx with a link": lambda room: archive(room.path / "a.docx", **{"_rels/.rels": LINK, "word/document.xml": BOMB}),
    "docx with entities": lambda room: archive(room.path / "a.docx", **{"_rels/.rels": OUTSIDE}),
    "docx that is a pickle": lambda room: room.file("a.docx", room.pickled("a.docx")),
    "epub with scripts": lambda room: write_epub(room.path / "a.epub", [HTML]),
    "epub with entities": lambda room: archive(room.path / "a.epub", **{"META-INF/container.xml": BOMB}),
    "epub that leads out": lambda room: write_epub(room.path / "a.epub", ["<p>a</p>"], {"../../canary": "x"}),
    "pdf with a script": lambda room: pdf(room, "/OpenAction << /S /JavaScript /JS (app.launchURL('http://a')) >>"),
    "pdf that launches": lambda room: pdf(room, f"/OpenAction << /S /Launch /F (/usr/bin/touch {room.canary}) >>"),
    "pdf that opens a page": lambda room: pdf(room, "/OpenAction << /S /URI /URI (http://127.0.0.1:9/) >>"),
    "pdf that is a pickle": lambda room: room.file("a.pdf", b"%PDF-1.4\n" + room.pickled("a.pkl")),
    "python": lambda room: room.file("a.py", room.code),
    "notebook": lambda room: room.file("a.ipynb", json.dumps({"cells": [{"cell_type": "code", "source": room.code}]})),
    "gzip": lambda room: room.file("a.txt.gz", b"\x1f\x8b\x08" + room.pickled("a.pkl")),
}


def vba(room: Room) -> None:
    with zipfile.ZipFile(room.path / "a.docx", "a") as out:
        out.writestr("word/vbaProject.bin", room.pickled("vbaProject.bin"))
        out.writestr("../../canary", "x")


each(ZOO, "document", DOCUMENTS, script)


def arrows(room: Room, name: str) -> Act:
    """A column of a type that old versions of pyarrow unpickled."""
    about = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": room.pickled("a.pkl")}
    rows = pyarrow.table([["Text"]], pyarrow.schema([pyarrow.field("text", pyarrow.string(), metadata=about)]))
    path = room.file(name, b"")
    if name.endswith("parquet"):
        parquet.write_table(rows, path)
        return lambda: [read_table([path]), *read([path])]
    with path.open("wb") as out, ipc.new_stream(out, rows.schema) as stream:
        stream.write_table(rows)
    return lambda: read_table([path])


def tabled(room: Room, files: dict[str, str]) -> Act:
    for name, content in files.items():
        room.file(name, content.replace("CODE", room.code).replace("SHELL", room.shell))
    return lambda: [read_table([room.path]), command("data", "look", room.path)]


def zipped(room: Room, name: str) -> Act:
    archive(room.path / "a.zip", **{name: "text\nText\n", "a.csv": "text\nText\n", "evil.py": room.code})
    return lambda: read_table([room.path / "a.zip"])


SAVED = {"dataset_info.json": "{}", "state.json": '{"_data_files": [{"filename": "/etc/passwd"}]}'}
TABLES: dict[str, dict[str, str]] = {
    "formula": {"a.csv": 'text,b\n=cmd|\' /C SHELL\'!A0,"=HYPERLINK(""http://127.0.0.1:9"")"\n@SUM(1),+1\n'},
    "loading script": {"artefact.py": "CODE", "README.md": "CODE", "a.csv": "text\nText\n"},
    "saved elsewhere": SAVED,
    "deep state": SAVED | {"state.json": '{"a":' * 200_000},
    "class of rows": {"a.jsonl": '{"text": "Text", "__class__": "os.system", "py/reduce": ["os.system", "SHELL"]}\n'},
}
each(ZOO, "table", same("a.parquet", "a.arrow"), arrows)
each(ZOO, "table", TABLES, tabled)
each(ZOO, "zip", same("../../canary.csv", "/tmp/../canary.csv", "a/../../../canary.csv"), zipped)


def recipe(room: Room, content: str) -> Act:
    path = room.file("a.toml", content.replace("SHELL", room.shell))
    (room.path / "out").mkdir()
    return lambda: command("train", path, "--out", room.path / "out")


RECIPES = {
    "yaml": "!!python/object/apply:os.system ['SHELL']\n",
    "yaml in toml": "seed = '!!python/object/apply:os.system [SHELL]'\n",
    "names": "[model]\nfamily = 'evil.Evil'\n[optimizer]\nname = '__import__(\"os\").system(\"SHELL\")'\n",
    "files": "[text]\nfiles = ['$(SHELL)', '`SHELL`', '{stdlib.__class__.__init__.__globals__[os]}']\n",
}
each(ZOO, "recipe", RECIPES, recipe)


def reported(room: Room, changes: dict[str, Any]) -> Act:
    text = json.dumps(perplexity(**changes)).replace("SHELL", room.shell)
    path = room.file("records.jsonl", text + "\n")
    return lambda: command("report", path, "--out", room.path / "report.html", "--title", GLOBALS % "cycler")


each(
    ZOO,
    "record",
    {
        "template": {"model": GLOBALS % "cycler", "label": TEMPLATES["classes"]},
        "page": {"label": "</script><script>x()</script>", "sources": ["javascript:x()"]},
        "values": {"positions": ["__import__('os').system('SHELL')"]},
    },
    reported,
)
SCHEMA = {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/schema.json"}}}
LOCAL = {"$ref": "file:///etc/passwd", "$schema": "http://127.0.0.1:9/", "$dynamicRef": "#meta"}
LOOP = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
ASKED: dict[str, dict[str, Any]] = {
    "far schema": {"json_schema": SCHEMA},
    "schema of a file": {"json_schema": LOCAL},
    "schema in a circle": {"json_schema": LOOP},
    "huge schema": {"json_schema": {"type": "string", "pattern": "((a{900}){900}){900}"}},
    "huge expression": {"regex": "((a{999}){999}){999}"},
    "backtracking": {"regex": "(a*)*(a|aa)+(.*)*b"},
    "template": {"prompt": GLOBALS % "cycler", "choices": ["{{ cycler }}", "${SHELL}"]},
}
BODIES: dict[str, dict[str, Any]] = {
    "far schema": {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
    "grammar of a file": {"response_format": {"type": "grammar", "grammar": "%import common.WORD\nstart: WORD"}},
    "endless grammar": {"response_format": {"type": "grammar", "grammar": "start: start start | start"}},
    "huge grammar": {"response_format": {"type": "grammar", "grammar": 'start: (("a"{9999}){9999}){9999}'}},
    "huge expression": {"response_format": {"type": "regex", "regex": "((a{999}){999}){999}"}},
    "own template": {"chat_template": GLOBALS % "cycler"},
    "variables": {"chat_template_kwargs": {"messages": "x", " bounds": 1, "strftime_now": GLOBALS % "cycler"}},
    "tools": {"tools": [{"type": "function", "function": {"name": GLOBALS % "cycler", "__class__": "x"}}]},
    "message": {"messages": [{"role": "user", "content": GLOBALS % "cycler", "__class__": {"__init__": 1}}]},
    "model": {"model": "../../../../etc/passwd"},
}


def requested(room: Room, changes: dict[str, Any]) -> Act:
    lm = load(room.base)
    path = room.file("a.jsonl", json.dumps({"prompt": "a", **changes}).replace("SHELL", room.shell) + "\n")
    return lambda: read_requests(path, lm.engine(int(1e7)), lm.tokenizer)


def posted(room: Room, changes: dict[str, Any]) -> Act:
    text = json.dumps({"model": "tiny", "messages": USER, "max_tokens": 2} | changes).replace("SHELL", room.shell)

    def ask() -> None:
        done = room.server.http.post("/v1/chat/completions", content=text)
        assert done.status_code < 500 and (done.status_code < 400 or done.json()["error"]["message"]), done.text

    return ask


each(ZOO, "request", ASKED, requested)
each(ZOO, "body", BODIES, posted)
