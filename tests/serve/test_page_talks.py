"""Conversations of the page: questions that wait, answers that are stopped, and what is explained, copied and saved."""

import re
import threading
from contextlib import contextmanager

import pytest

from tests.serve import material
from tests.serve.browsing import Watched, asked, given
from tests.serve.material import SHIP


@pytest.fixture(scope="module")
def live(served_models, tmp_path_factory):
    with material.live(tmp_path_factory.mktemp("talks"), {"tiny": served_models["tiny"]}, room=200, answer=16) as made:
        yield made


@contextmanager
def unread(live, page, monkeypatch, name: str, text: str):
    """The conversation about a document whose reading goes on until the yielded event is set."""
    gate = threading.Event()
    with monkeypatch.context() as patched:
        patched.setattr(live.serving.worker, "breathe", lambda seconds: gate.wait(30))
        page.set_input_files("input[type=file]", {"name": name, "mimeType": "text/plain", "buffer": text.encode()})
        page.wait_for_selector(".now >> text=Ask")
        page.click("nav >> text=Ask")
        page.wait_for_selector(".waiting [role=progressbar]")
        try:
            yield gate
        finally:
            gate.set()


def pressed(page, question: str) -> None:
    """Ask a question without waiting for its answer."""
    page.fill("#question", question)
    page.keyboard.press("Enter")


def test_stop_ends_the_answer_that_is_written_and_not_the_question_behind_it(watched, live, monkeypatch):
    page, held = watched.page, []

    def hold_the_first(route) -> None:
        if held:
            route.continue_()
        held.append(route)

    with unread(live, page, monkeypatch, "stop.md", "Of its own.\n" + SHIP * 8) as gate:
        pressed(page, "The first?")
        pressed(page, "The second?")
        page.wait_for_selector(".turn >> nth=1")
        page.route("**/v1/chat/completions", hold_the_first)
        gate.set()
        page.wait_for_selector(".composer .stopping")
        page.click(".composer .stopping")
        page.wait_for_selector(".turn:first-child :text('Stopped by you.')")
        page.wait_for_selector(".turn:last-child .contract")


def test_a_question_that_waited_is_asked_when_the_page_comes_back(watched, live, monkeypatch):
    page = watched.page
    with unread(live, page, monkeypatch, "away.md", "Another one.\n" + SHIP * 8) as gate:
        pressed(page, "What?")
        page.wait_for_selector(".turn >> text=Take it back")
        address = page.url
        page.goto("about:blank")
        gate.set()
        material.read(live, address.rpartition("/")[2])
    page.goto(address)
    page.wait_for_selector(".turn .contract")


def test_an_answer_is_explained_for_the_prompt_that_it_answers(watched):
    page = watched.page
    given(page, "explained.md", SHIP)
    page.click(".library th a:text-is('explained.md')")
    asked(page, "What does the captain drink?")
    sent = []
    page.route("**/explain", lambda route: (sent.append(route.request.post_data_json), route.abort()))
    page.click("nav >> text=Tasks")
    page.get_by_label("What", exact=True).select_option(label="explained.md")
    page.click("text=Begin")
    page.click(".result >> text=Look inside")
    page.click("button:text-is('Why this answer?')")
    page.wait_for_selector("#map-title ~ .fault")
    assert sent.pop()["history"] == []
    watched.faults.clear()  # the browser itself notes each request that fails


def test_an_input_method_has_the_enter_key_for_itself(watched):
    page = watched.page
    page.click("text=Paste a text")
    enter = "(node, of) => node.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter', bubbles: true, ...of }))"
    for of in ({"isComposing": True}, {"keyCode": 229}):
        page.locator("dialog input").evaluate(enter, of)
        assert page.locator("dialog").count() == 1, of
    page.click("dialog >> text=Cancel")
    page.click("nav >> text=Ask")
    page.fill("#question", "half a word")
    page.locator("#question").evaluate(enter, {"keyCode": 229})
    assert page.input_value("#question") == "half a word"


def test_a_text_is_copied_where_browsers_give_no_clipboard(watched):
    page = watched.page
    page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.goto(f"{watched.url}/#/ask")
    page.reload()
    page.wait_for_selector("#question")
    code = """async () => {
        const { showMarkdown } = await import("/page/js/markdown.js");
        showMarkdown(document.querySelector(".turns"), "```\\nfirst\\nsecond\\n```");
    }"""
    page.evaluate(code)
    page.click(".code button")
    page.wait_for_selector(".code button:text-is('Copied')")
    page.focus("#question")
    page.keyboard.press("Control+V")
    assert page.input_value("#question") == "first\nsecond\n"
    page.wait_for_selector(".code button:text-is('Copy')")
    page.evaluate("document.execCommand = () => false")
    page.click(".code button")
    page.wait_for_selector(".code button:text-is('Not copied: select the text instead')")


def test_on_a_phone_a_passage_of_look_inside_is_shown_in_the_text(browser, live):
    made = Watched(browser, live.url, viewport={"width": 390, "height": 844})
    page = made.page
    page.goto(live.url)
    given(page, "inside.md", SHIP)
    page.click("nav >> text=Ask")
    asked(page, "What does the captain drink?")
    mark = {"start": 7, "end": 33, "text": SHIP[7:33], "attention": 0.2, "effect": 6.0, "marked": True}
    found = {"marks": [mark], "rests": 10.0, "together": 6.0, "agreement": None, "steps": []}
    page.route("**/explain", lambda route: route.fulfill(json=found))
    page.click("text=Look inside >> nth=-1")
    page.click("button:text-is('Why this answer?')")
    page.click(".causes button")
    page.wait_for_selector("mark.here:visible")
    assert (made.faults, made.outside) == ([], [])
    page.close()


def test_a_saved_conversation_says_what_is_not_complete(watched):
    watched.page.wait_for_selector(".drop")
    code = """async () => {
        const { asMarkdown, begin } = await import("/page/js/talk.js");
        const turn = (question, more) => ({ ...begin({}), question, ...more });
        const turns = [turn("Whole?", { state: "done", answer: "Whole." }),
            turn("Stopped?", { state: "stopped", answer: "Half" }),
            turn("Failed?", { state: "failed", error: "too long" }),
            turn("Reloaded?", { state: "interrupted", answer: "Half" }),
            turn("Long?", { state: "done", answer: "Half", finish: "length", usage: { completion_tokens: 9 } }),
            turn("Waits?", { state: "queued" }), turn("Written?", { state: "writing", answer: "Ha" })];
        return asMarkdown({ turns }, "a.md");
    }"""
    parts = [one.split("\n\n") for one in watched.page.evaluate(code).strip().split("\n\n## ")]
    assert parts == [
        ["# a.md"],
        ["Whole?", "Whole."],
        ["Stopped?", "Half", "> Stopped by you."],
        ["Failed?", "> Refused: too long"],
        ["Reloaded?", "Half", "> Interrupted when the page was reloaded."],
        ["Long?", "Half", "> The answer ended at its longest length, 9 tokens; it may be unfinished."],
        ["Waits?", "> Not asked yet."],
        ["Written?", "Ha", "> Not complete: the answer was still being written."],
    ]


def test_what_look_inside_cuts_ends_in_a_sign_and_between_characters(watched):
    page = watched.page
    page.wait_for_selector(".drop")
    code = """async () => {
        const { begin } = await import("/page/js/talk.js");
        const { state } = await import("/page/js/state.js");
        const mark = { start: 0, end: 999, text: "a" + "😀".repeat(500), attention: 1, effect: 1, marked: true };
        const why = { state: "done", marks: [mark], rests: 9, together: 1, agreement: null, steps: [] };
        state.look = { ...begin({}), state: "done", question: "a" + "😀".repeat(500), answer: "b", why };
        location.hash = "#/look";
    }"""
    page.evaluate(code)
    page.wait_for_selector("canvas")
    page.click("text=Where it looked most")
    for place in (".asked", ".best li", ".passage q"):
        assert re.search("a(😀)+…$", page.inner_text(place)), place


def test_word_by_word_shows_what_an_explanation_brought(watched):
    page = watched.page
    page.wait_for_selector(".drop")
    code = """async () => {
        const { begin } = await import("/page/js/talk.js");
        const { emit, state } = await import("/page/js/state.js");
        state.look = { ...begin({}), state: "done", question: "a", answer: "b" };
        location.hash = "#/look";
        await new Promise((done) => setTimeout(done));
        const step = { text: "b", probability: 0.5, others: [["c", 0.25]] };
        state.look.why = { state: "done", marks: [], rests: 0, together: 0, agreement: null, steps: [step] };
        emit("turn", state.look);
        return document.querySelectorAll(".token").length;
    }"""
    assert page.evaluate(code) == 1


def test_a_table_of_many_rows_makes_few_leaves_and_every_place_is_named(watched):
    page = watched.page
    given(page, "rows.md", "name,value\n" + "".join(f"row{n},{n}\n" for n in range(9)))
    rows = [f"a row of the table, which is number {n}\n" for n in range(2000)]
    starts = [sum(map(len, rows[:n])) for n in range(0, 2000, 2)]
    places = [{"start": start, "name": f"row {2 * n + 1}"} for n, start in enumerate(starts)]
    told = {"text": "".join(rows), "places": places}
    page.route("**/text", lambda route: route.fulfill(json=told))
    page.click(".library th a:text-is('rows.md')")
    page.wait_for_selector(".leaf")
    assert page.locator(".leaf").count() < len(told["text"]) / 4000 + 1
    assert page.locator(".page").all_text_contents() == [one["name"] for one in places]
    bare = "() => [...document.querySelectorAll('.leaf')].map((leaf) => [...leaf.childNodes].filter((one) => "
    bare += "!one.classList?.contains('page')).map((one) => one.textContent).join('')).join('')"
    assert page.evaluate(bare) == told["text"]
    start, end = told["text"].index("number 1499"), told["text"].index("number 1502")
    code = """async ([document, number, end]) => {
        (await import("/page/js/state.js")).emit("jump", { document, number, end });
    }"""
    page.evaluate(code, [page.url.rpartition("/")[2], start, end])
    page.wait_for_selector("mark.here")
    assert "".join(page.locator("mark").all_text_contents()) == told["text"][start:end]


def test_a_question_is_asked_again_once_for_each_refusal(watched):
    page, sent = watched.page, []
    page.click("nav >> text=Ask")
    page.wait_for_selector(".turns .empty")

    def refuse(route) -> None:
        code, status = [("not_read", 409), ("model_loading", 503)][len(sent) % 2]
        sent.append(code)
        if len(sent) < 9:
            route.fulfill(status=status, json={"error": {"message": f"refused as {code}", "code": code}})
        else:
            route.fulfill(status=400, json={"error": {"message": "without end", "code": "invalid_value"}})

    page.route("**/v1/chat/completions", refuse)
    pressed(page, "Are you there?")
    page.wait_for_selector(".turn .fault")
    assert sent == ["not_read", "model_loading", "not_read"]
    watched.faults.clear()  # the browser itself notes each refused request
