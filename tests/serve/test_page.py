"""The page in a browser: a document is given, read, asked about and deleted; hostile answers run and fetch nothing."""

import hashlib
import json
import re
from pathlib import Path

import pytest

import handscroll
from tests.serve import material
from tests.serve.browsing import Watched, asked, given
from tests.serve.markdown import ALLOWED, payloads

PAGE = Path(handscroll.__file__).parent / "serve" / "page"
SOURCES = {file.name: file.read_text(encoding="utf-8") for file in sorted((PAGE / "js").glob("*.js"))}
CANARY = "ocelot-canary-8812"
BOOK = "".join(f"def walk{n}(top):\n    return os.listdir(top)\n\n" for n in range(8)) + f"The word is {CANARY}.\n"


@pytest.fixture(scope="module")
def live(served_models, tmp_path_factory):
    with material.live(tmp_path_factory.mktemp("page"), {"tiny": served_models["tiny"]}, room=200, answer=24) as made:
        yield made


def test_a_book_is_read_asked_explained_and_deleted(watched, live):
    page = watched.page
    given(page, "book.txt", BOOK)
    assert watched.serious() == []
    page.click(".library th a")
    page.wait_for_function("() => document.activeElement.id === 'question'")
    page.fill("#question", "What is the word?")
    page.wait_for_selector(".gauge[data-total]")
    page.wait_for_timeout(600)  # longer than the gauge waits for the next key
    counted = int(page.locator(".gauge").get_attribute("data-total"))
    asked(page, "What is the word?")
    contract = page.locator(".contract summary").inner_text()
    assert f"{counted:,} of {counted:,} tokens read" in contract and "from the cache" in contract
    assert CANARY in page.locator(".leaves").inner_text()
    page.click("button:text-is('Why this answer?')")
    page.wait_for_selector(".why .numbers:has-text('nats')")
    assert watched.serious() == []
    asked(page, "And again?")
    page.click(".turn:last-child >> text=Look inside")
    page.click("button:text-is('Why this answer?')")
    page.wait_for_selector("canvas")
    assert page.locator(".token").count() > 1 and watched.serious() == []
    page.click("nav >> text=Read")
    page.click("[aria-label='Delete book.txt']")
    page.click("dialog >> text=Delete >> nth=-1")
    page.wait_for_selector(".empty:visible")
    assert kept(page) == "{}"
    left = [
        file
        for file in live.serving.settings.store.rglob("*")
        if file.is_file() and CANARY.encode() in file.read_bytes()
    ]
    assert left == []


def kept(page) -> str:
    return page.evaluate("JSON.stringify(sessionStorage)")


def test_a_conversation_outlives_a_reload_but_not_its_document(watched, live):
    page = watched.page
    given(page, "kept.txt", BOOK)
    page.click("nav >> text=Ask")
    asked(page, "What is the word?")
    answer = page.locator(".turn .prose").last.inner_text()
    page.fill("#question", "a draft")
    page.reload()
    page.wait_for_selector(".turn .contract")
    assert page.locator(".turn .prose").last.inner_text() == answer and page.input_value("#question") == "a draft"
    page.route("**/v1/chat/completions", lambda route: None)
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn .wait >> nth=1")
    page.reload()
    page.wait_for_selector(".turn:last-child :text('Interrupted when the page was reloaded.')")
    page.unroute("**/v1/chat/completions")
    page.click(".turn:last-child >> text=Answer again")
    page.wait_for_selector(".turn:nth-child(2) .contract")
    page.evaluate("() => { Storage.prototype.setItem = () => { throw new DOMException('', 'QuotaExceededError'); }; }")
    asked(page, "No room for this one")
    page.click("summary:text-is('Settings')")
    assert "Save it before" in page.locator(".lives").inner_text() and "What is the word?" not in kept(page)
    page.click("button:text-is('New conversation')")
    page.wait_for_selector(".turns .empty")
    page.reload()
    asked(page, "What is the word now?")
    assert "What is the word now?" in kept(page)
    number = page.url.rpartition("/")[2]
    live.http.delete(f"/v1/documents/{number}")
    page.evaluate("id => new BroadcastChannel('handscroll').postMessage(id)", number)  # as another tab does
    page.wait_for_selector(".turns :text('Talk with tiny')")
    assert kept(page) == "{}" and page.locator(".turn").count() == 0


def test_a_refusal_says_what_the_server_says(watched):
    page = watched.page
    given(page, "long.txt", BOOK)
    page.goto(f"{watched.url}/#/ask")
    page.fill("#question", "word " * 3000)
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn .fault")
    assert "2,000" in page.locator(".turn .fault").inner_text()
    assert "400" in watched.faults.pop()  # the browser itself notes each refused request
    watched.faults.clear()
    page.click("text=Edit the question")
    assert page.input_value("#question").startswith("word word")


def test_what_fails_is_said_once_and_in_its_place(watched, live, monkeypatch):
    page = watched.page
    given(page, "calm.txt", BOOK)
    page.set_input_files("input[type=file]", {"name": "odd.xyz", "mimeType": "text/plain", "buffer": b"\0\1"})
    page.wait_for_selector(".library + .unread .fault")
    assert page.inner_text(".unread h2") == "Not read" and page.is_hidden(".now") and watched.serious() == []
    watched.shot("unread")
    page.click("[aria-label='Dismiss odd.xyz']")
    page.wait_for_selector(".unread", state="hidden")
    code = """async () => {
        const { howFar } = await import("/page/js/bar.js");
        const { chosen, usual } = await import("/page/js/choose.js");
        const { state } = await import("/page/js/state.js");
        const waiting = { state: "waiting", tokens: 5 };
        const said = () => howFar(waiting).words[0];
        state.documents = [{ id: "a", readings: { tiny: waiting } }];
        const alone = said();
        const only = usual();
        state.documents.push({ id: "b", readings: { tiny: { state: "reading", tokens: 5 } } });
        const none = usual();
        chosen("b");
        return [alone, said(), only, none, usual()];
    }"""
    assert page.evaluate(code) == ["Is about to be read; 5 tokens", "Waits for its turn; 5 tokens", "a", "", "b"]
    page.reload()
    page.click(".library th a")
    page.wait_for_selector(".gauge[data-total]")
    page.route("**/v1/**", lambda route: route.abort())
    page.fill("#question", "Who is there?")
    page.wait_for_timeout(600)  # longer than the gauge waits for the next key
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn .fault")
    page.wait_for_timeout(600)
    assert page.inner_text(".turn .fault") == "The server does not answer."
    assert page.locator("main :text('does not answer')").count() == 1 and page.locator(".gauge .fault").count() == 0
    watched.shot("silent")
    page.unroute("**/v1/**")
    with monkeypatch.context() as patched:
        for name, value in (("state", "failed"), ("error", "model.gguf ends within its tensors")):
            patched.setattr(live.serving.models.all["tiny"], name, value)
        page.goto(f"{watched.url}/#/read")
        page.reload()
        page.wait_for_selector(".banner:has-text('tiny could not be loaded: model.gguf ends within its tensors')")
        assert page.is_hidden(".drop") and page.is_visible(".library") and watched.serious() == []
        watched.shot("broken")
    watched.faults.clear()  # the browser itself notes each refused request


def test_tasks_label_each_line_and_fill_gaps(watched):
    page = watched.page
    page.goto(f"{watched.url}/#/tasks/classify")
    page.fill("textarea >> nth=0", "import os\nreturn os")
    page.check("input[type=checkbox]")
    page.fill("textarea >> nth=1", "list\npath")
    page.click("text=Begin")
    page.wait_for_selector(".labels tr:nth-child(2) strong")
    assert {one.inner_text() for one in page.locator(".labels strong").all()} <= {"list", "path"}
    page.click("[role=tab]:has-text('Code')")
    page.fill("input[type=number]", "4")
    page.click("text=Begin")
    page.wait_for_selector(".result .contract")
    assert page.locator("ins").inner_text() and watched.serious() == []


def test_the_model_is_measured_inside_the_page(watched):
    page = watched.page
    page.goto(f"{watched.url}/#/look")
    page.get_by_label("Longest text, in tokens").select_option("512")
    page.get_by_role("button", name="Measure").click()
    table = page.get_by_role("table", name="Numbers found")
    table.wait_for(timeout=30_000)
    assert table.locator("thead th").all_inner_texts() == ["Depth", "128", "256", "512"]
    assert len(table.locator("tbody td").all_inner_texts()) == 9
    assert page.locator(".curve dd").count() == 16
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save the records").click()
    lines = Path(saved.value.path()).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["needle", "perplexity"]
    assert watched.faults == [] and watched.outside == [] and watched.serious() == []


def test_on_a_phone_an_explanation_is_awaited_in_the_conversation(browser, live):
    made, held = Watched(browser, live.url, viewport={"width": 390, "height": 844}), []
    page = made.page
    page.goto(live.url)
    text = BOOK * 4
    given(page, "phone.txt", text)
    page.click("nav >> text=Ask")
    page.route("**/v1/chat/completions", lambda route: held.append(route))
    page.fill("#question", "What is the word?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".wait:has-text('Thinking…')")
    held.pop().continue_()
    page.unroute("**/v1/chat/completions")
    page.wait_for_selector(".turn .contract")
    asked(page, "And again?\n" * 30)
    page.route("**/explain", lambda route: held.append(route))
    at = text.rindex("The word")
    mark = {"start": at, "end": len(text), "text": text[at:], "attention": 0.2, "effect": 6.0, "marked": True}
    found = {"marks": [mark], "rests": 10.0, "together": 6.0, "agreement": None, "steps": []}
    page.click(".turn:last-child >> text=Why this answer?")
    progress = page.locator(".why [role=progressbar]")
    progress.wait_for()
    assert not page.is_visible(".leaves") and progress.evaluate("node => node.checkVisibility()")
    seen = "name => document.querySelector(name)?.getBoundingClientRect().bottom < innerHeight"  # once it has scrolled
    page.wait_for_function(seen, arg=".why [role=progressbar]")
    page.wait_for_selector(r"text=/one by one: \d+ s/")
    made.shot("phone-awaited")
    held.pop().fulfill(json=found)
    page.wait_for_selector("mark.here")
    page.wait_for_function(seen, arg="mark.here")
    page.click("button:text-is('Conversation')")
    assert page.inner_text(".why > p").startswith("One passage carries this answer")
    assert page.inner_text(
        ".causes .note"
    ) == "Without it, the answer would be 403 times less likely." and not page.is_visible("text=nats")
    made.shot("phone-why")
    page.click("summary:text-is('Numbers')")
    ends = (
        "() => [...document.querySelectorAll('.numbers > p, .turns')].map((one) => one.getBoundingClientRect().bottom)"
    )
    page.wait_for_function(f"() => {{ const [turns, words] = ({ends})(); return words < turns; }}")  # it has scrolled
    assert page.is_visible("text=6.00 nats lost without it") and made.serious() == []
    page.click(".turn:first-child >> text=Why this answer?")
    page.wait_for_selector(".why [role=progressbar]")
    page.type("#question", "somebody writes")
    weaker = [mark | {"start": 9 * n, "end": 9 * n + 1, "effect": effect} for n, effect in enumerate((2, 1, 0.2, 9))]
    held.pop().fulfill(json=found | {"marks": weaker, "rests": 30.0})
    page.wait_for_selector(".turn:first-child .why:has-text('these matter most')")
    words = ("more than 1,000 times", "7.4 times", "2.7 times", "slightly")
    said = [f"Without it, the answer would be {word} less likely." for word in words]
    assert page.locator(".turn:first-child .causes .note").all_inner_texts() == said and not page.is_visible(".leaves")
    causes = page.locator(".turn:first-child .causes button")
    assert causes.evaluate_all("nodes => nodes.map((node) => node.dataset.strength)") == ["3", "2", "2", "1"]
    said = "async (why) => (await import('/page/js/why.js')).whyNode({ document: 'd', why }).firstChild.textContent"
    shares = ((10.0, "rests on the document as a whole"), (20.0, "4 passages carry this answer together"))
    for together, words in shares:
        told = page.evaluate(said, found | {"marks": weaker, "rests": 30.0, "together": together})
        assert words in told, told
    assert page.evaluate("document.activeElement.id") == "question"
    inside = """name => {
        const node = document.querySelector(name);
        const [inner, outer] = [node, node.closest(".turns")].map((one) => one.getBoundingClientRect());
        return inner.top > outer.top && inner.bottom <= outer.bottom;
    }"""
    page.wait_for_function(inside, arg=".turn:first-child .why")
    made.shot("phone-several")
    for text in (".actions button >> nth=0", ".settings summary", ".side >> nth=1"):
        assert page.locator(text).evaluate("node => getComputedStyle(node).textDecorationLine") == "underline", text
    edge = page.locator("#which-document").evaluate("node => getComputedStyle(node).borderTopColor")
    assert edge.startswith("rgb(")  # rgba(...) would be without colour
    page.click("button:text-is('Text')")
    page.wait_for_function("() => document.querySelector('mark.here').getBoundingClientRect().top > 0")
    assert (made.faults, made.outside) == ([], [])
    page.close()


def test_chinese_dark_and_narrow(browser, live):
    made = Watched(browser, live.url, locale="zh-CN", color_scheme="dark", viewport={"width": 360, "height": 740})
    page = made.page
    for place, title in (("read", "给它一篇长文"), ("ask", "提问"), ("tasks", "任务"), ("look", "透视")):
        page.goto(f"{live.url}/#/{place}")
        page.wait_for_selector(f"h1:has-text('{title}')", state="attached")
        assert made.serious() == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), place
    page.click("#language")
    page.wait_for_selector("h1:has-text('Look inside')")
    assert (made.faults, made.outside) == ([], [])
    page.close()


def test_a_key_is_asked_for_and_kept_for_the_tab(served_models, browser, tmp_path, monkeypatch):
    key = "a key of one's own"
    monkeypatch.setenv("HANDSCROLL_KEY", key)
    with material.live(tmp_path / "store", {"tiny": served_models["tiny"]}, key) as server:
        made = Watched(browser, server.url)
        page = made.page
        page.goto(server.url)
        page.fill("dialog input", key)
        page.keyboard.press("Enter")
        page.wait_for_selector(".drop")
        assert page.evaluate("[Object.values(sessionStorage), Object.values(localStorage), document.cookie]") == [
            [key],
            [],
            "",
        ]
        page.close()


@pytest.mark.promise("R32")
def test_hostile_markdown_runs_and_fetches_nothing(watched):
    """300 answers that try to. What is left of each are elements and attributes of a short list."""
    show = """async (payloads) => {
        const { showMarkdown } = await import("/page/js/markdown.js");
        const place = document.body.appendChild(document.createElement("div"));
        const found = [];
        for (const payload of payloads) {
            const node = place.appendChild(document.createElement("div"));
            for (let end = 1; end < payload.length; end += 7) showMarkdown(node, payload.slice(0, end));
            showMarkdown(node, payload);
        }
        await new Promise((done) => setTimeout(done, 500));
        for (const one of place.querySelectorAll("*")) {
            found.push([one.localName, "", ""]);
            for (const { name, value } of one.attributes) found.push([one.localName, name, value]);
            one.focus();
            one.dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
        }
        return found;
    }"""
    given = payloads()
    assert len(given) >= 300
    watched.page.wait_for_selector(".drop")
    found = watched.page.evaluate(show, given)
    assert len(found) > len(given)
    for element, name, value in found:
        assert element in ALLOWED and name in ALLOWED[element] | {""}, (element, name, value)
        assert name != "href" or re.match(r"(https?|mailto):", value), value


def test_places_in_a_text_and_the_map_hold(watched):
    """Characters that are two units in JavaScript; the pyramid against a plain maximum over 32,768 tokens' passages."""
    watched.page.wait_for_selector(".drop")
    code = """async () => {
        const { units } = await import("/page/js/original.js");
        const { pyramid, greatest } = await import("/page/js/scrollmap.js");
        const text = "a😀b𝒳c字d", points = [7, 0, 2, 4, 6];
        const passage = (_, n) => ({ start: n * 250, end: n * 250 + 250, attention: ((n * 7919) % 512) / 512 });
        const marks = Array.from({ length: 512 }, passage);
        const levels = pyramid(marks, 128000);
        let wrong = 0;
        for (let n = 0; n < 400; n++) {
            const from = (n * 311) % 120000, to = from + 1 + ((n * n * 17) % 8000);
            const there = marks.filter((one) => one.start < to && one.end > from);
            const plain = Math.max(...there.map((one) => one.attention / 250));
            const found = greatest(levels, from, to);
            wrong += found < plain - 1e-6; // a cell at the edge may hold more, never less
        }
        return [units(text, points).map((at) => text.slice(at)), wrong];
    }"""
    cut, wrong = watched.page.evaluate(code)
    assert cut == ["", "a😀b𝒳c字d", "b𝒳c字d", "c字d", "d"] and wrong == 0


def test_each_word_is_there_in_both_languages():
    table = dict(re.findall(r'^  "([\w.]+)": (\[.*\]),$', SOURCES["words.js"], re.M))
    assert len(table) > 150
    for key, entry in table.items():
        texts = re.findall(r'"((?:[^"\\]|\\.)*)"', entry)
        names = [set(re.findall(r"\{(\w+)\}", text)) for text in texts]
        assert len(texts) >= 2 and names[0] | {"count"} >= names[-1] and names[-1] | {"count"} >= names[0], key
        assert re.search(r"[一-鿿]|English", texts[-1]), key
    everything = "".join(text for name, text in SOURCES.items() if name != "words.js")
    for key in re.findall(r"\bt\(\"([\w.]+)\"", everything):
        assert key in table, key


def test_the_page_is_static_and_safe_as_written():
    for name, text in SOURCES.items():
        for sink in (
            "innerHTML",
            "outerHTML",
            "insertAdjacent",
            "document.write",
            "eval(",
            "Function(",
            "DOMParser",
            "srcdoc",
        ):
            assert sink not in text, (name, sink)
        assert 'setAttribute("style"' not in text and "localStorage.setItem(KEY" not in text
        assert re.findall(r"https?://\S+", text) in ([], ['http://www.w3.org/1998/Math/MathML";']), name
    html = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script>|//", html.replace("<!--", ""))


def test_vendored_files_are_those_that_are_listed():
    listed = re.findall(r"^\| (\S+) \|.*\| ([0-9a-f]{64}) \|$", (PAGE / "vendor" / "THIRD_PARTY.md").read_text(), re.M)
    assert {name for name, _ in listed} == {file.name for file in (PAGE / "vendor").iterdir() if "js" in file.suffix}
    for name, digest in listed:
        assert hashlib.sha256((PAGE / "vendor" / name).read_bytes()).hexdigest() == digest
        assert (PAGE / "vendor" / f"{name.split('.')[0]}.LICENSE.txt").exists()


@pytest.mark.promise("R31")
def test_the_page_is_sent_once_and_nothing_else_is(live):
    first = live.http.get("/page/js/app.js", headers={"Authorization": ""})
    again = live.http.get("/page/js/app.js", headers={"If-None-Match": first.headers["etag"]})
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
    assert first.headers["content-type"].startswith("text/javascript")
    for path in (
        "/page/../gate.py",
        "/page/%2e%2e/gate.py",
        "/page/js/..%2f..%2fgate.py",
        "/page//etc/passwd",
        "/page/",
    ):
        assert live.http.get(path).status_code == 404, path
