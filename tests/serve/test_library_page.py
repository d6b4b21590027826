"""The page with several documents: chosen, asked, what was read of each, and what retrieval would have seen."""

import threading

import pytest

from tests.serve import material
from tests.serve.browsing import asked, given
from tests.serve.material import LONG, SHIP

LATER = ("A beginning of its own.\n" + SHIP * 8).encode()


@pytest.fixture(scope="module")
def live(served_models, tmp_path_factory):
    with material.live(tmp_path_factory.mktemp("shelf"), {"tiny": served_models["tiny"]}, room=200, answer=16) as made:
        yield made


def fits_a_phone(watched, shown: str, name: str) -> None:
    """In the other theme and the other language too."""
    page = watched.page
    page.click("#theme")
    page.set_viewport_size({"width": 360, "height": 740})
    page.click("#language")
    page.wait_for_selector(shown)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth") and watched.serious() == []
    watched.shot(name)


def test_several_documents_are_ticked_asked_and_what_was_read_is_said(watched):
    page = watched.page
    given(page, "ship.md", SHIP)
    given(page, "long.md", LONG)
    assert page.locator(".library .more").inner_text().startswith("Longer than the window of tiny (2,000 tokens)")
    watched.shot("library")
    page.click("button:text-is('Several documents…')")
    page.click("dialog >> text=All or none")
    assert watched.serious() == []
    watched.shot("choose")
    page.click("dialog >> text=Ask these")
    page.fill("#question", "What is the number of room 23?")
    page.wait_for_selector(".gauge[data-total]")
    page.wait_for_timeout(600)  # longer than the gauge waits for the next key
    counted = int(page.locator(".gauge").get_attribute("data-total"))
    asked(page, "What is the number of room 23?")
    assert f"{counted:,} of {counted:,} tokens read" in page.locator(".contract summary").inner_text()
    whole, cut = page.locator(".sources .whole").inner_text(), page.locator(".sources .cut").inner_text()
    assert "ship.md read whole" in whole and "long.md read by passages:" in cut and "3,0" in cut
    page.click(".sources .cut summary")
    page.click(".passages button:has-text('Part 23')")
    page.wait_for_selector("mark.here")
    assert "room 23 is" in page.locator("mark.here").first.inner_text()
    assert page.locator(".texts select option:checked").inner_text() == "long.md" and watched.serious() == []
    watched.shot("several")
    fits_a_phone(watched, ".turn", "several-phone")


def test_what_retrieval_would_have_seen_stands_beside_the_answer(watched):
    page = watched.page
    given(page, "alone.md", SHIP)
    page.click(".library th a:text-is('alone.md')")
    asked(page, "What does the captain drink?")
    page.click("button:text-is('What would a search have found instead?')")
    page.wait_for_selector(".versus")
    sides = page.locator(".versus .note").all_inner_texts()
    assert "(100%)" in sides[0] and len(sides) == 2 and watched.serious() == []
    page.click(".retrieval summary")
    page.click(".retrieval .passages button >> nth=0")
    page.wait_for_selector("mark.here")
    watched.shot("retrieval")
    fits_a_phone(watched, ".versus", "retrieval-phone")


def test_a_search_that_finds_nothing_and_a_new_conversation(watched):
    page = watched.page
    given(page, "nothing.md", SHIP)
    page.click(".library th a:text-is('nothing.md')")
    asked(page, "zzz qqq")
    page.click("button:text-is('What would a search have found instead?')")
    page.wait_for_selector(".retrieval :text('finds no passage')")
    assert page.locator(".versus .note").count() == 1 and page.locator(".retrieval .passages").count() == 0
    page.click("summary:text-is('Settings')")
    page.click("button:text-is('New conversation')")
    page.wait_for_selector(".turns .empty")
    assert page.locator(".turn").count() == 0


def test_a_question_waits_until_the_document_is_read(watched, live, monkeypatch):
    page, gate = watched.page, threading.Event()
    with monkeypatch.context() as patched:
        patched.setattr(live.serving.worker, "breathe", lambda seconds: gate.wait(30))
        page.set_input_files("input[type=file]", {"name": "soon.md", "mimeType": "text/plain", "buffer": LATER})
        page.wait_for_selector(".now >> text=Ask")
        page.click("nav >> text=Ask")
        page.wait_for_selector(".waiting [role=progressbar]")
        assert "You can ask already" in page.locator(".turns .empty").inner_text()
        page.fill("#question", "What?")
        page.keyboard.press("Enter")
        page.click(".turn:has-text('Will be asked as soon as soon.md is read') >> text=Take it back")
        assert page.input_value("#question") == "What?" and page.locator(".turn").count() == 0
        page.keyboard.press("Enter")
        page.wait_for_selector(".turn >> text=Take it back")
        assert "tokens" in page.locator(".waiting .note").inner_text() and watched.serious() == []
        watched.shot("waiting")
        gate.set()
        page.wait_for_selector(".turn:last-child .contract")
    entry = next(one for one in live.serving.shelf.all() if one.name == "soon.md")
    entry.readings["tiny"] = {"state": "failed", "error": "its reading was evicted"}
    page.fill("#question", "And now?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".waiting :text('evicted')")
    assert "409" in watched.faults.pop()  # the browser itself notes each refused request
    watched.faults.clear()
    watched.shot("evicted")
    page.click(".waiting >> text=Read it")
    page.wait_for_selector(".turn:nth-child(2) .contract")
