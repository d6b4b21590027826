"""Chats with the real Qwen beside the reference library. Skipped where the file is absent."""

import pytest

import handscroll
from bench.chat import TALKS, compare_talk, theirs_of
from tests.models.gguf.material import real


@pytest.mark.long
def test_chats_in_both_languages_are_those_of_the_reference_library():
    model, theirs = theirs_of(real("qwen2"))
    lm = handscroll.load(real("qwen2"), weights="float")
    for number in (0, len(TALKS) // 2):
        found = compare_talk(lm, model, theirs, number)
        assert found["ids"] == found["turns"] == 3
        assert all(gap < 1e-3 for gap in found["gaps"]), found
