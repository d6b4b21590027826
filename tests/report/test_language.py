"""Pages in Chinese: every text of the page has a translation with the same places for values."""

import ast
import re
import string
from pathlib import Path

import pytest

from handscroll.base.errors import ConfigError
from handscroll.report import evaluation_page, render
from handscroll.report.chinese import CHINESE
from handscroll.report.language import joined, listed, say, speaking
from tests.naming import naming
from tests.report.material import COMPARED, DOCTOR, EVERYTHING, EXPOSURE, LEAK, LENGTH, RULER, RUNTIMES, VIEWS, tasks

REPORT = Path(__file__).parents[2] / "handscroll" / "report"
ASKED = (
    "evaluation",
    "losses",
    "needles",
    "tasks",
    "plots",
    "heat",
    "numbers",
    "page",
    "reach",
    "views",
    "exposure",
    "changes",
    "measures",
)  # whose pages come in Chinese
# what the records say
KEPT = {
    "short text suffers",
    "not finite",
    "upon &amp; a time",
    "as it should be",
    "The code is",
    "handscroll evaluate tasks tiny loogle",
}


def spoken() -> set[str]:
    """The texts that are handed to `say` as they stand, and those of the template."""
    found = set(re.findall(r"say\(['\"]([^'\"]+)['\"]\)", (REPORT / "page.html.j2").read_text(encoding="utf-8")))
    for name in ASKED:
        for node in ast.walk(ast.parse((REPORT / f"{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "say" and node.args:
                try:
                    found.add(ast.literal_eval(node.args[0]))
                except ValueError:
                    continue  # a name: its texts stand in a tuple of words, which the rendered page tests
    return found


def places(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_every_text_has_a_translation_with_its_values():
    missing = spoken() - set(CHINESE)
    assert missing == set()
    for english, chinese in CHINESE.items():
        assert places(english) == places(chinese), english


def test_a_chinese_page_has_no_english_sentence():
    html = render(
        evaluation_page(
            [*EVERYTHING, tasks("one"), RULER, LENGTH, VIEWS, LEAK, DOCTOR, EXPOSURE, RUNTIMES, COMPARED],
            trained=2048,
            language="zh",
        )
    )
    assert '<html lang="zh-Hans">' in html and "各位置的损失" in html and "训练长度 2K" in html
    body = re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    words = re.findall(r">\s*([A-Za-z][a-z]+(?: [a-z]+){2,})", body)
    assert set(words) <= KEPT, words


def test_english_is_spoken_after_a_chinese_page():
    with pytest.raises(ZeroDivisionError), speaking("zh"):
        assert (say("depth"), listed(["a", "b", "c"]), joined(["一。", "二。"])) == ("深度", "a、b和c", "一。二。")
        raise ZeroDivisionError
    assert (say("depth"), listed(["a", "b", "c"]), joined(["One.", "Two."])) == ("depth", "a, b and c", "One. Two.")
    with pytest.raises(ConfigError, match=naming("'zj'", "'zh'")):
        evaluation_page(EVERYTHING, language="zj")
