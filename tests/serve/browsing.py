"""A browser for the tests of the page: Chromium without a window, which reports what a person would not see."""

import os
import shutil
from contextlib import contextmanager

import pytest

EXECUTABLES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

SHOTS = os.environ.get("HANDSCROLL_SHOTS", "")  # a folder for pictures of the page


def executable() -> str:
    """Where Chromium is.

    Raises:
        Skipped: it is not installed, or the library that drives it.
    """
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'handscroll[dev]'")
    found = next((path for name in EXECUTABLES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    return found


@contextmanager
def chromium():
    """A browser."""
    found = executable()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watched:
    """A page of the server, with every error of its console and every request to somewhere else."""

    def __init__(self, browser, url: str, **settings):
        self.url, self.faults, self.outside = url, list[str](), list[str]()
        self.page = browser.new_page(**{"viewport": {"width": 1280, "height": 860}, "locale": "en-US", **settings})
        self.page.set_default_timeout(60_000)  # of a machine that has other things to do
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", self._asked)
        self.page.on("dialog", lambda dialog: (self.faults.append(dialog.message), dialog.dismiss()))
        self.page.on("popup", lambda popup: self.outside.append(popup.url))

    def _said(self, message) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(message.text)

    def _asked(self, request) -> None:
        if not request.url.startswith((self.url, "blob:", "data:")):
            self.outside.append(request.url)

    def shot(self, name: str) -> None:
        """A picture, if somebody wants to look."""
        if SHOTS:
            self.page.screenshot(path=f"{SHOTS}/{name}.png")

    def serious(self) -> list[str]:
        """What axe finds serious or critical."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found if one["impact"] in ("serious", "critical")]


def given(page, name: str, text: str) -> None:
    """Upload a document and wait until it is read."""
    page.set_input_files("input[type=file]", {"name": name, "mimeType": "text/plain", "buffer": text.encode()})
    page.wait_for_selector(f".library a:text-is('{name}')")


def asked(page, question: str) -> None:
    """Ask a question and wait for the end of its answer, which is painted a frame later than what stands below it."""
    page.fill("#question", question)
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn:last-child .contract")
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
