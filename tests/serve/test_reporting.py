"""A report of a model over the interface: the records of the library, how far it is, and what ends it."""

import json
import re

import pytest

import handscroll
from handscroll.evaluate.brief import Brief, brief, measured_on
from handscroll.serve.routes import reporting
from tests.naming import naming
from tests.serve import material
from tests.serve.material import TEXT


@pytest.fixture(scope="module")
def live(served_models, tmp_path_factory):
    models = {name: served_models[name] for name in ("tiny", "vectors")}
    with material.live(tmp_path_factory.mktemp("report"), models) as made:
        yield made


def events(live, body: dict) -> list[dict]:
    with live.http.stream("POST", "/v1/models/tiny/report", json=body) as answer:
        assert answer.status_code == 200, answer.read()
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_report_is_that_of_the_library(live, served_models, monkeypatch):
    book = TEXT * 24
    number = live.http.post("/v1/documents", files={"file": ("book.txt", book.encode())}).json()["id"]
    live.until(lambda: live.http.get(f"/v1/documents/{number}").json()["readings"]["tiny"]["state"] == "read")
    used = []
    monkeypatch.setattr(live.serving.admission, "use", lambda owner, tokens: used.append(tokens))
    *told, last = events(live, {"longest": 512, "needles": 1, "document": number})
    assert len(used) == 1 and used[0] >= told[-1]["done"] and used[0] > 512
    assert told and all(0 <= one["done"] <= one["total"] for one in told)
    assert last["model"] == "tiny" and last["text"] == "book.txt"
    lm = handscroll.load(served_models["tiny"])
    wanted = brief(lm, measured_on(lm.tokenizer, "book.txt", book), Brief(longest=512, needles=1))
    for found, known in zip(last["records"], wanted, strict=True):
        assert found["kind"] == known["kind"] and found["certificate"] == known["certificate"]
    assert last["records"][0]["accuracy"] == wanted[0]["accuracy"]
    assert last["records"][1]["mean"] == pytest.approx(wanted[1]["mean"], abs=1e-5)


def test_without_a_document_it_is_measured_on_code_that_ships(live):
    (*_, last) = events(live, {"longest": 512, "needles": 1})
    assert "standard library" in last["text"] and last["records"][1]["tokens"] == 511


def test_what_cannot_be_measured_is_refused_with_the_numbers(live):
    for path, body, words in (
        ("tiny", {"longest": 4096}, naming("4,096", "2,000")),
        ("tiny", {"longest": 100}, naming("longest", "512")),
        ("vectors", {}, naming("/v1/embeddings")),
        ("nobody", {}, naming("nobody")),
        ("tiny", {"document": "doc-" + "0" * 24}, naming("doc-")),
    ):
        answer = live.http.post(f"/v1/models/{path}/report", json=body)
        assert answer.status_code in (400, 404, 422), answer.text
        assert re.search(words, answer.json()["error"]["message"]), answer.text
    short = live.http.post("/v1/documents", files={"file": ("short.txt", b"Too little.")}).json()["id"]
    with live.http.stream("POST", "/v1/models/tiny/report", json={"longest": 512, "document": short}) as answer:
        assert "512" in answer.read().decode()


def test_nobody_listens_any_more_and_the_work_ends(live):
    with live.http.stream("POST", "/v1/models/tiny/report", json={"longest": 2000, "needles": 16}) as answer:
        next(answer.iter_lines())
    assert live.http.post("/v1/completions", json={"model": "tiny", "prompt": "import", "max_tokens": 2}).is_success
    (*_, last) = events(live, {"longest": 512, "needles": 1})  # it waits for no report that nobody hears
    assert last["records"]
    live.until(lambda: live.serving.admission.open == 0)


def test_what_somebody_waits_for_has_its_turn_while_a_report_is_measured(live, monkeypatch):
    def measured(lm, text, how, on_read):
        worker, ran = live.serving.worker, []
        worker._awaited.append(lambda: ran.append("an explanation"))
        on_read(1)
        return [{"ran": list(ran)}]

    monkeypatch.setattr(reporting, "brief", measured)
    (*_, last) = events(live, {"longest": 512, "needles": 1})
    assert last["records"] == [{"ran": ["an explanation"]}]
