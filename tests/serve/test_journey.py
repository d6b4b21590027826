"""The whole way on real books with a real model: given, read, asked, explained, restarted, asked again, deleted.

Takes minutes: the model reads some 3,000 tokens. Pictures of the page in both languages and themes, on a desktop and on
a phone, are left in the folder of the test.
"""

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import shared
from tests.serve import material
from tests.serve.browsing import Watched, chromium
from tests.text.documents import write_pdf

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]
QWEN = Path.home() / ".cache" / "handscroll-real" / "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
CANARY = "kestrel-canary-4417"
PATIENCE = 400_000  # milliseconds for a reading or an answer
VIEWS = {
    "desktop-en-light": {"viewport": {"width": 1280, "height": 860}, "locale": "en-US", "color_scheme": "light"},
    "desktop-zh-dark": {"viewport": {"width": 1280, "height": 860}, "locale": "zh-CN", "color_scheme": "dark"},
    "phone-zh-light": {"viewport": {"width": 390, "height": 844}, "locale": "zh-CN", "color_scheme": "light"},
    "phone-en-dark": {"viewport": {"width": 390, "height": 844}, "locale": "en-US", "color_scheme": "dark"},
}


class Book(NamedTuple):
    """A document, a question about it, a word of the right answer, and words of the passage that holds it."""

    name: str
    data: bytes
    question: str
    answer: str
    evidence: str


def pdf_of(text: str, folder: Path) -> bytes:
    """Pages of lines of about 80 characters."""
    words, lines = text.encode("ascii", "replace").decode().split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > 80:
            lines.append("")
        lines[-1] += f"{word} "
    pages = [lines[at : at + 20] for at in range(0, len(lines), 20)]
    write_pdf(folder / "a.pdf", [[(60, 720 - 20 * n, line) for n, line in enumerate(page)] for page in pages])
    return (folder / "a.pdf").read_bytes()


@pytest.fixture(scope="module")
def books(tmp_path_factory) -> list[Book]:
    """One English, one Chinese, and one PDF made of an English one; each with a planted word."""
    folder = tmp_path_factory.mktemp("books")
    crusoe = shared("text_en/books_train/defoe_robinson_crusoe.txt").read_text(encoding="utf-8")[:4000]
    three = shared("text_zh/classic/sanguo_yanyi.txt").read_text(encoding="utf-8")
    three = three[(at := three.index("榜文行到涿县")) : at + 1100]
    pride = shared("text_en/books_train/austen_pride_and_prejudice.txt").read_text(encoding="utf-8")[:4000]
    planted = f"The planted word is {CANARY}.\n\n"  # first, where no small model repeats it
    return [
        Book("crusoe.txt", (planted + crusoe).encode(), "In which city was the narrator born?", "York", "York"),
        Book("三国.txt", (planted + three).encode(), "张飞的字是什么？", "翼德", "翼德"),
        Book(
            "pride.pdf",
            pdf_of(planted + pride, folder),
            "What is the name of the man who has taken Netherfield Park?",
            "Bingley",
            "Bingley",
        ),
    ]


def serving(store: Path):
    if not QWEN.exists():
        pytest.skip(f"the real model is absent: {QWEN}")
    return material.live(store, {"qwen": QWEN}, memory=400 << 20, room=600, answer=48, patience=300)


def asked(page, book: Book, number: int) -> str:
    """Ask on the page of a document; the answer."""
    page.click(f".library a:text-is('{book.name}')")
    page.fill("#question", book.question)
    page.keyboard.press("Enter")
    page.wait_for_selector(f".turn >> nth={number}", timeout=PATIENCE)
    page.wait_for_selector(".turn:last-child .contract", timeout=PATIENCE)
    return page.locator(".turn:last-child").inner_text()


def watching(browser, url: str, **settings) -> Watched:
    """A page whose clicks may wait for a machine that is busy with an answer."""
    made = Watched(browser, url, **settings)
    made.page.set_default_timeout(60_000)
    made.page.goto(url)
    return made


def home(watched) -> None:
    watched.page.goto(f"{watched.url}/#/read")
    watched.page.wait_for_selector(".library")


def pictured(browser, url: str, folder: Path, book: Book) -> None:
    """The shelf and a conversation, as different people see them."""
    for name, settings in VIEWS.items():
        made = watching(browser, url, **settings)
        made.page.wait_for_selector(".library")
        made.page.screenshot(path=folder / f"{name}-read.png")
        assert made.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        asked(made.page, book, 0)
        made.page.wait_for_timeout(300)
        made.page.screenshot(path=folder / f"{name}-ask.png")
        assert made.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        assert (made.serious(), made.faults, made.outside) == ([], [], []), name
        made.page.close()


def stored(store: Path) -> list[Path]:
    return [file for file in store.rglob("*") if file.is_file() and CANARY.encode() in file.read_bytes()]


def test_three_books_from_the_first_page_to_the_last_byte(books, tmp_path):
    store, readings = tmp_path / "store", {}
    with chromium() as browser:
        with serving(store) as server:
            empty = {file for file in store.rglob("*") if file.is_file()}
            watched = watching(browser, server.url)
            page = watched.page
            for book in books:
                file = {"name": book.name, "mimeType": "application/octet-stream", "buffer": book.data}
                page.set_input_files("input[type=file]", file)
                page.wait_for_selector(f".library a:text-is('{book.name}')", timeout=PATIENCE)
            numbers = {one["name"]: one["id"] for one in server.http.get("/v1/documents").json()["data"]}
            for book in books:
                readings[book.name] = material.read(server, numbers[book.name], "qwen", PATIENCE / 1000)
                assert readings[book.name]["readings"]["qwen"]["state"] == "read", readings[book.name]
            assert watched.serious() == []
            for book in books:
                home(watched)
                said = asked(page, book, 0)
                assert book.answer in said, said
                page.click(".turn:last-child >> button:text-is('Why this answer?')")
                page.wait_for_selector(".why .numbers:has-text('nats')", timeout=PATIENCE)
                marked = [one.inner_text() for one in page.locator(".leaves mark").all()]
                assert any(book.evidence in one for one in marked), marked
                assert watched.serious() == []
            pictured(browser, server.url, tmp_path, books[1])
            assert (watched.faults, watched.outside) == ([], [])
            page.close()
        with serving(store) as server:
            watched = watching(browser, server.url)
            page = watched.page
            for book in books:
                home(watched)
                assert book.answer in asked(page, book, 0)
                told = server.http.post(
                    f"/v1/documents/{numbers[book.name]}/ask", json={"question": book.question, "temperature": 0}
                )
                tokens = told.json()["handscroll"]["tokens"]
                assert tokens["read_now"] < 40 and tokens["seen"] == tokens["offered"]
            assert len({file.name for file in stored(store)}) >= 1
            home(watched)
            for book in books:
                page.click(f"[aria-label='Delete {book.name}']")
                page.click("dialog >> text=Delete >> nth=-1")
                page.wait_for_selector(f".library a:text-is('{book.name}')", state="detached")
            assert (watched.faults, watched.outside) == ([], [])
            page.close()
    assert stored(store) == []
    left = {file for file in store.rglob("*") if file.is_file() and file.stat().st_size} - empty  # a lock is empty
    assert not left, left
