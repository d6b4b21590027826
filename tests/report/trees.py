"""The tags and words of a page, read strictly, and words that try to be more than words."""

from html.parser import HTMLParser

HOSTILE = """<script>alert('x')</script> & "q" 'a' <img src=x onerror=y> {{ 7*7 }}"""
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Tree(HTMLParser):
    """Counts tags and fails on the first that is closed out of order; keeps ids and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.remove(tag) if tag in self.open else None

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
