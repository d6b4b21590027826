"""A short report: the records are those of the full evaluation, and all that is read is told while it is read."""

import pytest

import handscroll
from handscroll.base.errors import DataError
from handscroll.evaluate.brief import Brief, brief, measured_on
from handscroll.evaluate.needle import needle_grid

TEXT = "".join(f"The ship number {n} left the harbour before noon. " for n in range(400))


@pytest.fixture(scope="module")
def lm(tiny_folder):
    return handscroll.load(tiny_folder)


def test_the_records_are_those_of_the_full_evaluation(lm):
    how, heard = Brief(longest=512, needles=1), []
    needles, losses = brief(lm, measured_on(lm.tokenizer, "ships.txt", TEXT), how, heard.append)
    ids = lm.tokenizer.encode(TEXT, special=False)
    assert needles == needle_grid(lm, ids, how.grid(), "needles")
    assert needles["lengths"] == [128, 256, 512] and needles["language"] == "en"
    first = lm.nll(lm.tokenizer.encode(TEXT)[:512])
    assert losses["mean"] == pytest.approx(float(first.mean()), abs=1e-5) and losses["sources"] == ["ships.txt@0"]
    assert sum(heard) == needles["tokens"] + 511 and max(heard) <= 512
    assert how.tokens == pytest.approx(sum(heard), rel=0.2)


def test_a_chinese_text_is_asked_in_chinese_and_a_short_one_is_refused(lm):
    chinese = "从前有一条船离开了港口，船长在甲板上看着远方的海。" * 60
    needles, _ = brief(lm, measured_on(lm.tokenizer, "船", chinese), Brief(longest=512, needles=1))
    assert needles["language"] == "zh"
    with pytest.raises(DataError, match="512"):
        brief(lm, measured_on(lm.tokenizer, "short", TEXT[:200]), Brief(longest=512))
