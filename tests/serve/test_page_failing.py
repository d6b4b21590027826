"""The page where something fails or is stopped: gateways, a model that is being loaded, a server that is busy."""

import pytest

from tests.serve import material
from tests.serve.material import SHIP

GATEWAY = {"message": "the gateway has waited too long"}
LOOKED_AT = "dispatchEvent(new Event('focus'))"  # as when somebody comes back to the tab


@pytest.fixture(scope="module")
def live(served_models, tmp_path_factory):
    with material.live(tmp_path_factory.mktemp("fails"), {"tiny": served_models["tiny"]}, room=200, answer=16) as made:
        yield made


def files(*names: str) -> list[dict]:
    return [{"name": one, "mimeType": "text/plain", "buffer": f"{one}\n{SHIP}".encode()} for one in names]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"status": 504, "json": GATEWAY}, "waited too long"),
        ({"status": 502, "json": {"error": "Bad Gateway"}}, "Bad Gateway"),
        ({"status": 502, "body": "null"}, "null"),
        ({"status": 200, "body": f"data: {GATEWAY}\n\n", "content_type": "text/event-stream"}, "waited too long"),
    ],
)
def test_what_a_gateway_says_ends_the_answer(watched, answer, said):
    page = watched.page
    page.click("nav >> text=Ask")
    page.wait_for_selector(".turns .empty")
    page.route("**/v1/chat/completions", lambda route: route.fulfill(**answer))
    page.fill("#question", "Who is there?")
    page.keyboard.press("Enter")
    page.wait_for_selector(f".turn .fault:has-text('{said}')")
    page.wait_for_selector(".composer button:text-is('Ask')")
    watched.faults.clear()  # the browser itself notes each refused request


def test_an_error_of_the_page_itself_ends_the_answer_too(watched):
    page = watched.page
    page.click("nav >> text=Ask")
    page.wait_for_selector(".turns .empty")
    code = """async () => {
        const { api } = await import("/page/js/api.js");
        api.chat = async function* () { throw new RangeError("a bug"); };
    }"""
    page.evaluate(code)
    page.fill("#question", "Who is there?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn .fault:has-text('a bug')")
    page.wait_for_selector(".composer button:text-is('Ask')")
    assert watched.faults.pop() == "a bug"  # it is not hidden either


@pytest.mark.parametrize(
    "answer", [{"status": 502, "json": GATEWAY}, {"status": 200, "body": "<p>the gateway has waited too long</p>"}]
)
def test_a_file_that_a_gateway_refuses_does_not_hold_up_the_next(watched, answer):
    page, seen = watched.page, []

    def refuse_the_first(route) -> None:
        if route.request.method == "POST":
            seen.append(route)
        if len(seen) == 1 and route.request.method == "POST":
            route.fulfill(**answer)
        else:
            route.continue_()

    page.wait_for_selector(".drop")
    page.route("**/v1/documents", refuse_the_first)
    page.set_input_files("input[type=file]", files("first.md", f"next-{answer['status']}.md"))
    page.wait_for_selector(".unread .fault:has-text('waited too long')")
    page.wait_for_selector(f".library a:text-is('next-{answer['status']}.md')")
    watched.faults.clear()  # the browser itself notes each refused request


def test_a_file_that_is_stopped_while_the_model_is_loaded_is_not_sent(watched, live):
    page, sent = watched.page, []
    page.wait_for_selector(".drop")
    models = live.http.get("/v1/models").json()
    models["data"][0]["state"] = "loading"
    page.route("**/v1/models", lambda route: route.fulfill(json=models))
    page.evaluate(LOOKED_AT)
    page.wait_for_selector(".which:text-is('tiny is being loaded')")
    page.on("request", lambda one: sent.append(one.post_data or "") if one.method == "POST" else None)
    page.set_input_files("input[type=file]", files("stopped.md", "sent.md"))
    page.wait_for_selector(".now li:has-text('stopped.md') :text('Waits until the model is loaded')")
    page.wait_for_selector(".now li:has-text('sent.md') :text('Waits until the files before it have arrived')")
    page.click(".now li:has-text('stopped.md') button:text-is('Stop')")
    page.wait_for_selector(".now li:has-text('sent.md') :text('Waits until the model is loaded')")
    page.unroute("**/v1/models")
    page.wait_for_selector(".library a:text-is('sent.md')")
    assert len(sent) == 1 and page.locator(":text('stopped.md')").count() == 0


def test_a_stopped_upload_is_not_sent_again_with_a_key(watched):
    page, sent = watched.page, []

    def refuse(route) -> None:
        sent.append(route.request.method)
        route.fulfill(status=401, json={"error": {"message": "a key is needed", "code": "invalid_api_key"}})

    page.wait_for_selector(".drop")
    page.route("**/v1/documents", refuse)
    code = """async () => {
        const { api, locked } = await import("/page/js/api.js");
        const stop = new AbortController();
        locked.ask = async () => { stop.abort(); return true; };
        return api.upload(new File(["x"], "x.txt"), "", () => {}, stop.signal).catch((error) => error.name);
    }"""
    assert page.evaluate(code) == "AbortError" and sent == ["POST"]
    watched.faults.clear()  # the browser itself notes each refused request


def test_a_translation_is_begun_once_and_can_be_stopped_while_it_is_counted(watched):
    page, held, asked = watched.page, [], []
    page.goto(f"{watched.url}/#/tasks/translate")
    page.fill("textarea", "A text to translate")
    page.route("**/v1/count", lambda route: held.append(route))
    page.on("request", lambda one: asked.append(one) if one.url.endswith("/v1/chat/completions") else None)
    with page.expect_request("**/v1/count"):
        page.click(".task button:text-is('Begin')")
    page.click(".task button:text-is('Stop')")
    page.wait_for_selector(".task button:text-is('Begin')")
    with page.expect_request("**/v1/count"):
        page.click(".task button:text-is('Begin')")
    page.unroute("**/v1/count")  # which lets the requests go on
    page.wait_for_selector(".result .contract")
    assert len(asked) == 1
    watched.faults.clear()


def test_a_form_that_is_left_and_entered_again_shows_the_end_of_its_work(watched):
    page, held = watched.page, []
    page.goto(f"{watched.url}/#/tasks/classify")
    page.fill("textarea >> nth=0", "import os")
    page.route("**/v1/chat/completions", lambda route: held.append(route))
    with page.expect_request("**/v1/chat/completions"):
        page.click(".task button[type=submit]")
    page.click("#tab-translate")
    page.click("#tab-classify")
    page.wait_for_selector(".task button:text-is('Stop')")
    page.unroute("**/v1/chat/completions")
    page.wait_for_selector(".labels strong")
    page.wait_for_selector(".task button:text-is('Begin')")


def test_a_count_that_found_no_place_is_asked_for_again(watched):
    page, sent = watched.page, []

    def refuse_the_first(route) -> None:
        sent.append(route)
        if len(sent) > 1:
            route.continue_()
            return
        refusal = {"error": {"message": "16 counts of tokens are open", "code": "too_many_requests"}}
        route.fulfill(status=429, json=refusal)

    page.wait_for_selector(".drop")
    page.route("**/v1/count", refuse_the_first)
    page.click("nav >> text=Ask")
    page.wait_for_selector(".gauge[data-total]")
    assert page.locator(".gauge .fault").count() == 0
    watched.faults.clear()  # the browser itself notes each refused request


def test_facts_of_a_model_that_cannot_be_had_are_said_to_be_so(watched):
    page = watched.page
    page.wait_for_selector(".drop")
    page.route("**/v1/models/tiny", lambda route: route.abort())
    page.click("nav >> text=Look inside")
    page.wait_for_selector(".look .listed .fault:text-is('The server does not answer.')")
    watched.faults.clear()  # the browser itself notes each request that fails
