"""Several documents and documents longer than the window: read whole or by passages, and what was read is said."""

import pytest

from handscroll.serve.keys import make_key
from tests.serve import material
from tests.serve.material import CONTEXT, LONG, SHIP

ROOM = 200
CANARY = "ocelot-canary-5521"
CHINESE = "第一回\n\n船长喜欢喝酒。\n\n第二回\n\n图书馆在城北。\n"


@pytest.fixture(scope="module")
def keyed(served_models, tmp_path_factory):
    """A server with two owners."""
    folder = tmp_path_factory.mktemp("library")
    keys = {name: make_key(folder / "keys.toml", name) for name in ("ann", "bob")}
    with material.live(
        folder / "store", {"tiny": served_models["tiny"]}, keys["ann"], keys=folder / "keys.toml", room=ROOM
    ) as made:
        made.bob = made.as_owner(keys["bob"])
        made.ids = {name: uploaded(made, name, text) for name, text in BOOKS.items()}
        yield made


BOOKS = {"ship.md": SHIP, "long.md": LONG, "回.txt": CHINESE}


def uploaded(server, name: str, text: str) -> str:
    number = server.http.post("/v1/documents", files={"file": (name, text.encode())}).json()["id"]
    material.read(server, number)
    return number


def asked(server, path: str, status: int = 200, **body):
    body = {"max_tokens": 6, "temperature": 0} | body if "query" not in body else body
    made = server.http.post(path, json=body)
    assert made.status_code == status, made.text
    return made.json() if status == 200 else made.json()["error"]


def test_what_fits_is_read_whole_and_the_first_from_its_reading(keyed):
    ids = [keyed.ids["回.txt"], keyed.ids["ship.md"]]
    made = asked(keyed, "/v1/documents/ask", documents=ids, question="What does he drink?")
    told = made["handscroll"]
    assert [(one["name"], one["how"]) for one in told["documents"]] == [("ship.md", "whole"), ("回.txt", "whole")]
    first, second = told["documents"]  # the longer one that was read stands first
    assert first["from_reading"] >= first["tokens"] - 16 and second["from_reading"] == 0
    assert (
        first["seen"] == first["tokens"] and "notes" not in told and told["tokens"]["cached"] >= first["from_reading"]
    )
    prompt = keyed.http.post(
        "/v1/tokenize",
        json={"model": "tiny", "documents": ids, "messages": [{"role": "user", "content": "What does he drink?"}]},
    ).json()
    assert (
        prompt["count"] == made["usage"]["prompt_tokens"]
        and [one["how"] for one in prompt["documents"]] == ["whole"] * 2
    )
    assert SHIP + "\n\n[end of ship.md]" in "".join(prompt["texts"])
    again = asked(keyed, "/v1/documents/ask", documents=ids, question="And the library?")["handscroll"]
    assert again["tokens"]["read_now"] < 60  # the second document, too, comes from the cache


def test_what_does_not_fit_is_refused_unless_passages_are_asked_for(keyed):
    ids = list(keyed.ids.values())
    refused = asked(keyed, "/v1/documents/ask", 400, documents=ids, question="What is the number of room 23?")
    assert f"{CONTEXT - ROOM:,} would fit" in refused["message"] and '"reading": "auto"' in refused["message"]
    made = asked(keyed, "/v1/documents/ask", reading="auto", question="What is the number of room 23?")
    told = {one["name"]: one for one in made["handscroll"]["documents"]}
    assert [told[name]["how"] for name in BOOKS] == ["whole", "passages", "whole"]
    long = told["long.md"]
    assert 0 < long["seen"] < long["tokens"] and long["seen"] == sum(one["tokens"] for one in long["passages"])
    assert f"long.md was read by passages: {long['seen']:,} of {long['tokens']:,} tokens" in made["handscroll"]["notes"]
    best = max(long["passages"], key=lambda one: one["score"])
    assert "room 23 is" in LONG[best["start"] : best["end"]] and best["heading"] == "Part 23"
    only = asked(keyed, "/v1/documents/ask", reading="passages", question="the captain's rum", documents=ids[:1])
    assert only["handscroll"]["documents"][0]["how"] == "passages"


def test_one_long_document_is_answered_by_passages_when_the_request_says_so(keyed):
    number, question = keyed.ids["long.md"], "What is the number of room 31?"
    refused = asked(keyed, f"/v1/documents/{number}/ask", 400, question=question)
    assert refused["code"] == "context_length_exceeded" and '"reading": "auto"' in refused["message"]
    made = asked(keyed, f"/v1/documents/{number}/ask", question=question, reading="auto")
    document = made["handscroll"]["document"]
    assert document["how"] == "passages" and document["id"] == number and document["seen"] < document["tokens"]
    chat = {"model": "tiny", "document": number, "reading": "auto", "messages": [{"role": "user", "content": question}]}
    assert asked(keyed, "/v1/chat/completions", **chat)["handscroll"]["document"] == document
    short = asked(keyed, f"/v1/documents/{keyed.ids['ship.md']}/ask", question="Who?", reading="auto")
    assert short["handscroll"]["document"]["how"] == "whole" and "notes" not in short["handscroll"]
    wrong = asked(keyed, f"/v1/documents/{number}/ask", 400, question=question, passages=128)
    assert wrong["param"] == "passages"


def test_later_turns_keep_what_was_read_and_get_passages_of_their_own(keyed):
    number, messages = keyed.ids["long.md"], [{"role": "user", "content": "What is the number of room 12?"}]
    body = {"model": "tiny", "documents": [number], "reading": "passages", "passages": 200}
    first = asked(keyed, "/v1/chat/completions", messages=messages, **body)
    said = first["choices"][0]["message"]["content"]
    later = [*messages, {"role": "assistant", "content": said}, {"role": "user", "content": "And of room 33?"}]
    pieces = keyed.openai.chat.completions.create(
        messages=later, model="tiny", max_tokens=4, temperature=0, stream=True,
        extra_body={name: body[name] for name in ("documents", "reading", "passages")},
    )  # fmt: skip
    told = list(pieces)[-1].handscroll
    shown = told["documents"][0]["passages"]
    assert {one["turn"] for one in shown} == {0, 2} and len({one["start"] for one in shown}) == len(shown)
    assert any("room 33 is" in LONG[one["start"] : one["end"]] for one in shown if one["turn"] == 2)
    assert told["tokens"]["cached"] >= first["usage"]["prompt_tokens"] // 16 * 16 - 16


def test_what_retrieval_would_have_seen_stands_beside_the_whole(keyed):
    number = keyed.ids["ship.md"]
    made = asked(
        keyed, f"/v1/documents/{number}/retrieval", question="What is the ship called?", explain=True, passages=96
    )
    assert made["passages"] and made["passages"][0]["text"] in SHIP and made["searched"][0] == "words"
    whole, retrieved = made["whole"], made["retrieved"]
    assert whole["tokens"]["seen"] == whole["tokens"]["document"] > retrieved["tokens"]["seen"] > 0
    assert made["rests"]["of"] >= made["rests"]["held"] >= 0
    assert (
        whole["answer"]
        == asked(keyed, f"/v1/documents/{number}/ask", question="What is the ship called?")["choices"][0]["message"][
            "content"
        ]
    )
    ask = asked(keyed, f"/v1/documents/{number}/ask", question="What is the ship called?", retrieval={"passages": 96})
    assert ask["retrieval"]["retrieved"]["answer"] == retrieved["answer"] and "rests" not in ask["retrieval"]
    assert ask["retrieval"]["whole"]["answer"] == ask["choices"][0]["message"]["content"]
    assert (
        asked(keyed, f"/v1/documents/{number}/ask", 400, question="a", stream=True, retrieval={})["param"] == "stream"
    )
    assert (
        asked(keyed, f"/v1/documents/{keyed.ids['long.md']}/retrieval", 400, question="room")["code"]
        == "context_length_exceeded"
    )


def test_where_a_search_finds_nothing_the_answer_from_the_whole_is_kept(keyed):
    number = keyed.ids["ship.md"]
    asking = {"question": "zzz qqq", "retrieval": {"explain": True}}
    made = asked(keyed, f"/v1/documents/{number}/ask", **asking)
    told = made["retrieval"]
    assert (told["passages"], told["retrieved"], told["same"]) == ([], None, False)
    assert told["whole"]["answer"] == made["choices"][0]["message"]["content"]
    assert "rests" not in told or told["rests"]["held"] == 0


def test_passages_hold_what_an_answer_rests_on_or_not():
    from handscroll.explain.why import Explanation, Mark
    from handscroll.serve.routes.retrieval import rests

    marks = (Mark(0, 10, "a" * 10, 0.5, 2.0), Mark(10, 30, "b" * 20, 0.3, 1.0), Mark(30, 40, "c" * 10, 0.2, 0.0))
    why = Explanation("x", marks, (), -1.0, 3.0, 2.5, None, 9, 9)
    found = rests(why, [{"start": 0, "end": 12}, {"start": 35, "end": 40}])
    assert (found["held"], found["of"]) == (1, 2) and [one["within"] for one in found["marks"]] == [1.0, 0.1]


def test_refusals_name_what_is_wrong(keyed):
    ids, message = list(keyed.ids.values()), [{"role": "user", "content": "a"}]
    chat = {"model": "tiny", "messages": message}
    for body, field in (
        (chat | {"reading": "auto"}, "reading"),
        (chat | {"passages": 64}, "passages"),
        (chat | {"documents": [ids[0], ids[0]]}, "documents"),
        (chat | {"documents": ids, "document": ids[0]}, "documents"),
        (chat | {"documents": ids, "tools": [{}]}, "tools"),
        (chat | {"documents": ids, "messages": [{"role": "system", "content": "b"}, *message]}, "messages"),
    ):
        assert asked(keyed, "/v1/chat/completions", 400, **body)["param"] == field, body
    nothing = asked(keyed, "/v1/documents/ask", 422, question="zzz qqq", reading="passages", documents=ids[:1])
    assert nothing["code"] == "nothing_found"


def test_documents_of_others_are_not_searched_and_do_not_exist(keyed):
    bob, ids = keyed.bob, list(keyed.ids.values())
    assert asked(bob, "/v1/documents/ask", 404, question="rum")["code"] == "document_not_found"
    for path, body in (("ask", {"question": "rum"}), ("search", {"query": "rum"})):
        assert asked(bob, f"/v1/documents/{path}", 404, documents=ids[:1], **body)["code"] == "document_not_found"
    assert asked(bob, f"/v1/documents/{ids[0]}/retrieval", 404, question="rum")["code"] == "document_not_found"
    own = uploaded(bob, "his.txt", "The captain drinks water.\n")
    assert {one["name"] for one in asked(bob, "/v1/documents/search", query="captain drinks")["data"]} == {"his.txt"}
    bob.http.delete(f"/v1/documents/{own}")


def test_an_encoder_searches_too_and_after_delete_no_byte_is_left_in_index_or_disk(served_models, tmp_path):
    models = {name: served_models[name] for name in ("tiny", "vectors")}
    with material.live(tmp_path, models, room=ROOM) as server:
        text = f"{SHIP}The secret is {CANARY}.\n"
        kept, number = uploaded(server, "回.txt", CHINESE), uploaded(server, "secret.md", text)
        server.until(lambda: len(list(tmp_path.rglob("vectors-*.npy"))) == 2)
        found = asked(server, "/v1/documents/search", query="Who drinks rum?")
        best = next(one for one in found["data"] if one["ranks"].get("words") == 1)
        assert (best["name"], best["heading"], found["searched"]) == ("secret.md", "One", ["words", "vectors"])
        assert best["text"] == text[best["start"] : best["end"]] and set(best["scores"]) == {"words", "vectors"}
        chinese = asked(server, "/v1/documents/search", query="谁爱喝酒？", documents=[kept])["data"]
        assert {one["heading"] for one in chinese if "喝酒" in one["text"]} == {"第一回"}
        long = asked(server, "/v1/documents/search", query="rum " * 600)
        assert long["searched"] == ["words"] and "2,400 characters" in long["notes"][0]
        assert CANARY in str(asked(server, "/v1/documents/search", query=CANARY))
        asked(server, "/v1/documents/ask", question=f"the secret {CANARY}", reading="passages")
        assert server.http.delete(f"/v1/documents/{number}").json()["deleted"] is True
        left = [file for file in tmp_path.rglob("*") if file.is_file() and CANARY.encode() in file.read_bytes()]
        assert left == [] and not [file for file in tmp_path.rglob("*") if number in str(file)]
        library = server.serving.library
        ranked = [one for key in library._ranked for one in key]
        entries = [*library._indexed, *ranked, *(key[0] for key in library._tokens)]
        assert number not in {entry.number for entry in entries}
        assert CANARY not in str(asked(server, "/v1/documents/search", query=CANARY))
