"""What the page learns of its server after it was opened: other models, other documents, another key."""

import inspect
import json
import re
from pathlib import Path

import pytest

import handscroll
from handscroll.models import describe
from tests.serve import material
from tests.serve.browsing import Watched, asked, given
from tests.serve.material import SHIP

KEY = "a key of one's own"
LOOKED_AT = "dispatchEvent(new Event('focus'))"  # as when somebody comes back to the tab


@pytest.fixture(scope="module")
def live(served_models, tmp_path_factory):
    with material.live(tmp_path_factory.mktemp("learnt"), {"tiny": served_models["tiny"]}, room=200, answer=16) as made:
        yield made


def test_a_question_to_a_model_that_is_loaded_anew_waits_for_it(watched, live, monkeypatch):
    page, tiny = watched.page, live.serving.models.all["tiny"]
    page.click("nav >> text=Ask")
    page.wait_for_selector(".turns .empty")
    with monkeypatch.context() as patched:
        patched.setattr(tiny, "lm", None)
        patched.setattr(tiny, "state", "loading")
        page.fill("#question", "Are you there?")
        page.keyboard.press("Enter")
        page.wait_for_selector(".turn :text('Will be asked as soon as the model is loaded.')")
        page.wait_for_selector(".which:text-is('tiny is being loaded')")
    page.wait_for_selector(".turn .contract")
    assert page.locator(".which").inner_text() == "tiny"
    watched.faults.clear()  # the browser itself notes each refused request


def test_documents_and_models_of_others_appear_and_disappear(watched, live):
    page = watched.page
    given(page, "here.md", SHIP)
    kept = live.http.post("/v1/documents", files={"file": ("other.md", b"Of another tab.\n" + SHIP.encode())}).json()
    material.read(live, kept["id"])
    page.evaluate(LOOKED_AT)
    page.wait_for_selector(".library a:text-is('other.md')")
    page.click("nav >> text=Ask")
    page.wait_for_selector("#which-document option:text-is('other.md')", state="attached")
    live.http.delete(f"/v1/documents/{kept['id']}")
    page.evaluate(LOOKED_AT)
    page.wait_for_selector("#which-document option:text-is('other.md')", state="detached")
    models = live.http.get("/v1/models").json()
    models["data"][0]["id"] = "renamed"
    page.route("**/v1/models", lambda route: route.fulfill(json=models))
    page.evaluate(LOOKED_AT)
    page.wait_for_selector(".which:text-is('renamed')")
    watched.faults.clear()  # the gauge asks for a model that is not there


def test_a_server_that_is_gone_and_comes_back_is_seen(watched):
    page = watched.page
    page.wait_for_selector(".drop")
    page.route("**/v1/**", lambda route: route.abort())
    page.evaluate(LOOKED_AT)
    page.wait_for_selector(".banner:has-text('this page tries again')")
    page.unroute("**/v1/**")
    page.wait_for_selector(".banner", state="detached")
    watched.faults.clear()  # the browser itself notes each request that fails


def test_a_key_that_is_not_given_is_not_asked_for_again_by_itself(served_models, browser, tmp_path, monkeypatch):
    monkeypatch.setenv("HANDSCROLL_KEY", KEY)
    with material.live(tmp_path / "store", {"tiny": served_models["tiny"]}, KEY) as server:
        made = Watched(browser, server.url)
        page = made.page
        page.clock.install()
        page.goto(server.url)
        page.click("dialog >> text=Cancel")
        page.wait_for_selector(".fault")
        page.clock.run_for(30_000)
        assert page.locator("dialog").count() == 0 and made.serious() == []
        page.click("text=Enter a key")
        page.fill("dialog input", KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector(".drop")
        page.close()


def test_a_key_can_be_given_in_every_place_and_by_whatever_needs_one(served_models, browser, tmp_path, monkeypatch):
    monkeypatch.setenv("HANDSCROLL_KEY", KEY)
    upload = """async () => {
        const { api } = await import("/page/js/api.js");
        await api.upload(new File(["some words"], "a.md"), "", () => {});
    }"""
    with material.live(tmp_path / "store", {"tiny": served_models["tiny"]}, KEY) as server:
        for given in ("button", "upload"):
            made = Watched(browser, server.url)
            page = made.page
            page.goto(server.url)
            page.click("dialog >> text=Cancel")
            for place in ("ask", "tasks", "look", "read"):
                page.click(f"nav [data-place={place}]")
                page.wait_for_selector(f"main.place-{place} button:text-is('Enter a key')")
                assert page.locator("main :text('key')").count() > 0 and page.locator(".drop").count() == 0
            if given == "button":
                page.click("text=Enter a key")
            else:
                page.evaluate(f"window.sent = ({upload})(); 0")
            page.fill("dialog input", KEY)
            page.keyboard.press("Enter")
            page.wait_for_selector(".which:text-is('tiny')")
            page.wait_for_selector(".drop")
            page.close()


def test_a_key_that_is_needed_later_is_asked_for_once_and_what_it_opens_is_seen(watched, live):
    page, asked = watched.page, []
    page.wait_for_selector(".drop")
    page.route("**/v1/**", lambda route: route.abort())
    page.evaluate(LOOKED_AT)
    page.wait_for_selector(".banner")

    def refuse(route) -> None:
        asked.append(route)
        route.fulfill(status=401, json={"error": {"message": "a key is needed", "code": "invalid_api_key"}})

    page.route("**/v1/**", refuse)
    page.click("dialog >> text=Cancel")
    page.wait_for_selector(".banner", state="detached")
    before = len(asked)
    page.evaluate(LOOKED_AT)
    page.evaluate("new Promise((done) => setTimeout(done))")
    assert len(asked) == before and page.locator("dialog").count() == 0
    page.set_input_files("input[type=file]", {"name": "k.md", "mimeType": "text/plain", "buffer": b"Some words."})
    page.fill("dialog input", "any key")
    models = live.http.get("/v1/models").json()
    models["data"][0]["id"] = "renamed"
    page.unroute("**/v1/**")
    page.route("**/v1/models", lambda route: route.fulfill(json=models))
    page.keyboard.press("Enter")
    page.wait_for_selector(".which:text-is('renamed')")
    page.wait_for_selector(".drop")
    watched.faults.clear()  # the browser itself notes each refused request


def test_the_chosen_model_keeps_the_focus_and_outlives_a_reload(watched, live):
    page = watched.page
    models = live.http.get("/v1/models").json()
    models["data"].append(models["data"][0] | {"id": "twin"})
    page.route("**/v1/models", lambda route: route.fulfill(json=models))
    page.reload()
    chosen = "() => document.activeElement.matches('.corner select') && document.activeElement.value === 'twin'"
    page.focus(".corner select")
    page.keyboard.press("ArrowDown")
    page.wait_for_function(chosen)
    page.reload()
    page.wait_for_selector(".corner select")
    assert page.input_value(".corner select") == "twin"


def test_one_count_at_a_time_is_asked_for_and_then_the_newest(watched):
    page, held, sent = watched.page, [], []
    page.clock.install()
    page.route("**/v1/count", lambda route: held.append(route))
    page.on("request", lambda one: sent.append(one.post_data_json) if one.url.endswith("/v1/count") else None)
    page.goto(f"{watched.url}/#/ask")
    page.reload()
    for text in ("one", "one two", "one two three"):
        page.fill("#question", text)
        page.clock.run_for(1000)
    page.wait_for_timeout(0)  # let the requests be told of
    assert len(held) == 1
    page.unroute("**/v1/count")  # which lets it go on
    page.wait_for_selector(".gauge[data-total]")
    page.fill("#question", "one two three four")
    page.clock.run_for(1000)
    page.wait_for_selector(".gauge[data-total]")
    contents = [one["messages"][-1]["content"] for one in sent]
    assert contents[:2] == ["?", "one two three"] and contents[-1] == "one two three four", contents


READINGS = """async () => {
    const { emit, state } = await import("/page/js/state.js");
    const entry = (id, readings) => ({ id, name: `${id}.md`, bytes: 9, created: 1, notes: [], readings });
    const refused = { state: "refused", tokens: 70000 };
    const other = { ...state.models[0], id: "other", context: 64000, state: "loading" };
    state.models = [state.models[0], other];
    state.documents = [entry("long", { other: refused }),
        entry("read", { tiny: { state: "read", tokens: 5, read_at: 1 } }),
        entry("elsewhere", { other: { state: "read", tokens: 5, read_at: 1 } }),
        entry("nobody", { gone: { state: "reading", tokens: 5 } }),
        entry("later", { other: { state: "waiting", tokens: 5 } })];
    emit("documents");
}"""


def test_the_library_tells_the_window_of_the_model_that_refused(watched):
    page = watched.page
    page.wait_for_selector(".drop")
    page.evaluate(READINGS)
    assert page.inner_text(".library .more").startswith("Longer than the window of other (64,000 tokens)")
    code = """async () => {
        const { emit, state } = await import("/page/js/state.js");
        state.models[1].context = null;
        emit("models");
    }"""
    page.evaluate(code)
    assert page.inner_text(".library .more").startswith("Longer than the window of other: questions are")


def test_a_document_that_nobody_reads_can_be_read_and_deleted(watched):
    page, sent = watched.page, []
    page.wait_for_selector(".drop")
    page.evaluate(READINGS)
    assert [one.inner_text() for one in page.locator(".now .called").all()] == ["later.md"]
    page.wait_for_selector("[aria-label='Delete nobody.md']")
    page.route("**/nobody/read", lambda route: (sent.append(route.request.post_data_json), route.abort()))
    page.click("tr:has-text('nobody.md') >> text=/^Read$/")
    page.wait_for_selector("dialog")
    assert sent == [{"model": "tiny"}]
    watched.faults.clear()  # the browser itself notes each request that fails


def test_tasks_offer_what_the_chosen_model_has_read(watched):
    page = watched.page
    page.wait_for_selector(".drop")
    page.click("nav >> text=Tasks")
    page.evaluate(READINGS)  # also what is read while the form is open
    assert page.locator(".task select >> nth=0 >> option").all_inner_texts() == ["A text of your own", "read.md"]
    page.wait_for_selector(":text('4 documents are not listed, because tiny has not read them whole.')")


def test_the_caption_of_a_report_tells_what_was_measured(watched):
    page = watched.page
    page.wait_for_selector(".drop")
    page.evaluate(READINGS)
    needle = {"kind": "needle", "tokens": 5, "lengths": [128], "depths": [0.5], "accuracy": [[1]], "samples": 1}
    loss = {"kind": "perplexity", "tokens": 5, "loss": [1.0], "block": 8, "length": 8, "mean": 1.0}
    told = f"data: {json.dumps({'text': 'read.md', 'records': [needle, loss]})}\n\ndata: [DONE]\n\n"
    page.route("**/report", lambda route: route.fulfill(body=told, content_type="text/event-stream"))
    page.click("nav >> text=Look inside")
    page.get_by_label("Measured on").select_option("read")
    page.click("text=/^Measure$/")
    caption = page.locator("text=Measured on: read.md. 10 tokens were read.")
    caption.wait_for()
    page.get_by_label("Measured on").select_option("")
    page.click("#theme")
    page.click("#language")
    page.click("#language")
    caption.wait_for()


def test_every_fact_of_a_model_has_a_name_in_chinese():
    words = (Path(handscroll.__file__).parent / "serve" / "page" / "js" / "words.js").read_text(encoding="utf-8")
    table = re.search(r"const FACTS = \{(.*?)\};", words, re.S)
    told = inspect.getsource(describe)
    facts = re.findall(r'\(\s*"([a-zA-Z][\w ,-]*)", (?!\d)', told) + re.findall(r'title, names = "([^"]+)"', told)
    assert table and len(facts) > 15
    for fact in facts:
        assert fact.startswith("adapter") or re.search(rf'(^|[\s"]){re.escape(fact)}"?:', table[1]), fact


def test_look_inside_follows_models_and_documents(watched):
    page = watched.page
    page.wait_for_selector(".drop")
    code = """async (id) => {
        const { emit, state } = await import("/page/js/state.js");
        const more = id ? { state: "ready", context: 2000 } : { state: "loading", context: undefined };
        state.models = [{ ...state.models[0], id: "later", ...more }];
        state.documents = id ? [{ id, name: "new.md", bytes: 9, created: 1, notes: [], readings: {} }] : [];
        emit("models");
        emit("documents");
    }"""
    page.route("**/v1/models/later", lambda route: route.fulfill(json={"facts": {}}))
    page.evaluate(code, "")
    page.click("nav >> text=Look inside")
    page.wait_for_selector(".look :text('later is being loaded')")
    assert page.locator(".look .facts").count() == 0
    page.evaluate(code, "a")
    page.wait_for_selector(".look .facts dd:text-is('2,000')")
    assert page.get_by_label("Measured on").locator("option").all_inner_texts()[1:] == ["new.md"]
    assert page.get_by_role("button", name="Measure").is_enabled()


def test_where_a_reading_was_stopped_is_not_told_where_it_is_not_known(watched):
    page = watched.page
    page.wait_for_selector(".drop")
    code = """async (done) => {
        const { emit, state } = await import("/page/js/state.js");
        const stopped = { state: "stopped", tokens: 500, ...done };
        state.documents = [{ id: "a", name: "a.md", bytes: 9, created: 1, notes: [], readings: { tiny: stopped } }];
        emit("documents");
        const { waitingNode, obstacle } = await import("/page/js/waiting.js");
        const { node, paint } = waitingNode();
        paint(obstacle("a"));
        return [document.querySelector(".library .more").innerText, node.firstChild.textContent];
    }"""
    library, waiting = page.evaluate(code, {})
    assert library == "Stopped; it is not known here how much was read" and waiting == f"a.md: {library}"
    library, waiting = page.evaluate(code, {"done": 256})
    assert library == "Stopped at 256 of 500 tokens · 256 tokens are kept; reading on begins there."
    assert waiting == "a.md: Stopped at 256 of 500 tokens"


HEARD = """async () => {
    window.known = (await import("/page/js/state.js")).state;
    window.heard = [];
    new BroadcastChannel("handscroll").addEventListener("message", ({ data }) => heard.push(data));
}"""


@pytest.mark.parametrize("how", ["list", "reading"])
def test_conversations_about_documents_that_are_not_listed_stay(watched, live, how):
    """The list may be that of another key or another server; what this page itself deletes goes in all tabs."""
    page = watched.page
    given(page, f"stays-{how}.md", f"{how}\n{SHIP}")
    page.click(f".library th a:text-is('stays-{how}.md')")
    asked(page, "Who is there?")
    number = page.url.rpartition("/")[2]
    page.evaluate(HEARD)
    if how == "list":
        page.route("**/v1/documents", lambda route: route.fulfill(json={"object": "list", "data": []}))
        page.evaluate(LOOKED_AT)
    else:
        refusal = {"error": {"message": "no such document", "code": "document_not_found"}}
        page.route(f"**/v1/documents/{number}", lambda route: route.fulfill(status=404, json=refusal))
        page.route("**/v1/documents", lambda route: route.fulfill(json={"object": "list", "data": []}))
        code = """async (id) => {
            const { documentOf } = await import("/page/js/state.js");
            documentOf(id).readings = { tiny: { state: "reading", tokens: 5 } };
            (await import("/page/js/following.js")).follow();
        }"""
        page.evaluate(code, number)
    page.wait_for_function("id => !known.documents.some((one) => one.id === id)", arg=number)
    page.unroute("**/v1/documents")
    page.unroute(f"**/v1/documents/{number}")
    there = "id => dispatchEvent(new Event('focus')) && known.documents.some((one) => one.id === id)"
    page.wait_for_function(there, arg=number)
    page.click("nav >> text=Read")
    page.click(f".library th a:text-is('stays-{how}.md')")
    page.wait_for_selector(".turn .contract")
    assert page.evaluate("heard") == []
    page.click("nav >> text=Read")
    page.click(f"[aria-label='Delete stays-{how}.md']")
    page.click("dialog button:text-is('Delete')")
    page.wait_for_function("id => heard.includes(id)", arg=number)
    assert page.evaluate("Object.keys(sessionStorage).filter((one) => one.includes('talk.'))") == []
    watched.faults.clear()  # the browser itself notes each refused request


def test_a_list_that_another_key_asked_for_is_not_taken(watched):
    page = watched.page
    page.wait_for_selector(".drop")
    code = """async () => {
        const { api, key } = await import("/page/js/api.js");
        const { learnAgain } = await import("/page/js/learning.js");
        const { state } = await import("/page/js/state.js");
        const entry = (id) => ({ id, name: id, bytes: 9, created: 1, notes: [], readings: {} });
        api.documents = async () => {
            const asked = key.get();
            key.set("new");
            return [entry(`of ${asked || "no"} key`)];
        };
        state.documents = [entry("of new key")];
        await learnAgain();
        key.set("");
        return state.documents.map((one) => one.id);
    }"""
    assert page.evaluate(code) == ["of new key"]
