"""Answers, code, ROUGE, BLEU and chrF: against rouge-score, sacrebleu and plain tables."""

import random
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from handscroll.base.errors import ConfigError, DataError
from handscroll.metrics import Settings, compare, measure
from handscroll.metrics.answers import code_match, edit_similarity, exact_match, token_f1
from handscroll.metrics.rouge import overlap, rouge
from handscroll.metrics.sequences import places, run, subsequence
from handscroll.metrics.texts import language_of, language_told, splitter
from handscroll.metrics.translation import bleu, chrf, signature

WORDS = st.text("abc", max_size=25)


def table(one, other):
    """The whole table of lengths of longest common subsequences."""
    rows = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, item in enumerate(one):
        for j, thing in enumerate(other):
            rows[i + 1][j + 1] = rows[i][j] + 1 if item == thing else max(rows[i][j + 1], rows[i + 1][j])
    return rows


@given(WORDS, WORDS)
@settings(max_examples=150, deadline=None)
def test_what_two_sequences_share(one, other):
    assert subsequence(one, other) == table(one, other)[-1][-1]
    found = places(one, other)
    assert len(found) == subsequence(one, other) and sorted(set(found)) == found
    rest = iter(other)
    assert all(one[place] in rest for place in found), "a subsequence of the other"
    runs = [size for at in range(len(one)) for size in range(len(one) - at + 1) if one[at : at + size] in other]
    assert run(one, other) == max(runs, default=0)


TEXT = st.lists(st.sampled_from("The cat sat. on, a mat\n and-it x2 Ünder 3.5 \n".split(" ")), max_size=30).map(
    " ".join
)


@given(TEXT.filter(lambda text: any(map(str.isascii, text.strip().split()))), TEXT)
@settings(max_examples=150, deadline=None)
def test_rouge_equals_rouge_score_on_english(reference, prediction):
    names = {"1": "rouge1", "2": "rouge2", "l": "rougeL", "lsum": "rougeLsum"}
    oracle = RougeScorer(list(names.values()), use_stemmer=False).score(reference, prediction)
    for kind, name in names.items():
        made = overlap(kind)(reference, prediction)  # pyright: ignore[reportArgumentType]
        assert (made.precision, made.recall, made.f1) == pytest.approx(tuple(oracle[name])), kind


def test_rouge_of_long_texts_with_many_sentences_equals_rouge_score():
    draw = random.Random(3)
    words = "a b c d e f g h".split()
    one, other = ("\n".join(" ".join(draw.choices(words, k=12)) for _ in range(25)) for _ in range(2))
    oracle = RougeScorer(["rougeLsum", "rougeL"]).score(one, other)
    assert tuple(overlap("lsum")(one, other)) == pytest.approx(tuple(oracle["rougeLsum"])[:2])
    assert tuple(overlap("l")(one, other)) == pytest.approx(tuple(oracle["rougeL"])[:2])


def test_rouge_of_chinese_counts_characters():
    one, other = "今天天气很好，我们去公园。", "今天天气好。我们去了公园！"
    assert RougeScorer(["rouge1"]).score(one, one)["rouge1"].fmeasure == 0, "why there is a ROUGE of our own"
    assert rouge([one], [one], "2", "zh").value == 1
    spaced = [" ".join(f"w{ord(sign)}" for sign in text if sign not in "，。！") for text in (one, other)]
    oracle = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(*spaced)
    for kind, name in (("1", "rouge1"), ("2", "rouge2"), ("l", "rougeL")):
        assert rouge([one], [other], kind, "zh").value == pytest.approx(oracle[name].fmeasure)
    lines = [" ".join(f"w{ord(sign)}" for sign in text).replace("w12290", "\n") for text in (one, other)]
    lines = [line.replace("w65292 ", "").replace("w65281", "\n") for line in lines]
    oracle = RougeScorer(["rougeLsum"]).score(*lines)["rougeLsum"].fmeasure
    assert rouge([one], [other], "lsum", "zh").value == pytest.approx(oracle)
    assert splitter("zh")("GPT-4很好，3.5也行") == ["gpt", "4", "很", "好", "3", "5", "也", "行"]


def test_jieba_on_request(monkeypatch):
    pytest.importorskip("jieba", reason="jieba is an optional package")
    assert splitter("zh", "jieba")("我来到北京清华大学 GPU") == ["我", "来到", "北京", "清华大学", "gpu"]
    assert rouge(["我来到北京"], ["我去北京"], "1", "zh", "jieba").value == pytest.approx(2 / 3)
    with pytest.raises(ConfigError, match="jieba cuts Chinese"):
        splitter("en", "jieba")
    with pytest.raises(ConfigError, match="did you mean 'characters'"):
        splitter("zh", "character")


def test_a_text_in_another_language_is_not_scored_as_zero():
    with pytest.raises(DataError, match="reference 0 has no word of the language en; is it zh"):
        rouge(["今天天气很好"], ["今天天气很好"])
    with pytest.raises(ConfigError, match="unknown language 'cn'"):
        exact_match(["a"], ["a"], "cn")
    assert language_of(["今天天气很好 OK"]) == "zh" and language_of(["Peking is 北京"]) == language_of([]) == "en"


def test_answers_as_squad():
    """The examples follow the rules of the official script: articles, case, punctuation, bags of words."""
    assert exact_match(["The Broncos"], ["broncos!"]).value == 1
    assert token_f1([["the old black cat"]], ["a black cat sat"]).value == pytest.approx(2 * 2 / (3 + 3))
    assert token_f1([["Paris", "in Paris, France"]], ["Paris, France"]).value == pytest.approx(4 / 5)
    assert token_f1(["big big dog"], ["big dog"]).value == pytest.approx(2 * 2 / 5)
    assert exact_match([""], ["the"]).value == token_f1([""], ["a"]).value == 1, "no answer, and none given"
    assert token_f1(["cat"], [""]).value == token_f1([""], ["cat"]).value == 0


def test_answers_as_cmrc():
    assert exact_match(["《红楼梦》"], ["红楼梦。"], "zh").value == 1
    assert exact_match(["3.5元"], ["35元"], "zh").value == 0
    # the longest run is 1963年 (4 items: the number is one), of 5 and 6 items
    assert token_f1(["于1963年出生"], ["1963年，她"], "zh").value == pytest.approx(2 * 2 / (5 + 3))
    assert token_f1([["北京", "北京市"]], ["在北京市"], "zh").value == pytest.approx(2 * 3 / (3 + 4))
    assert token_f1(["北京上海"], ["北海"], "zh").value == pytest.approx(2 * 1 / (4 + 2)), "no bag: one run"


def test_code():
    assert code_match(["  return x\n"], ["  return x   \n\n"]).value == 1
    assert code_match(["  return x"], ["return x"]).value == 0
    one, other = "def f(a):\n    return a", "def f(b):\n    return b"
    assert edit_similarity([one], [other]).value == pytest.approx(2 * table(one, other)[-1][-1] / len(one + other))
    assert edit_similarity(["", "x"], ["", ""]).each.tolist() == [1, 0]  # pyright: ignore[reportOptionalMemberAccess]


REFERENCES = ["The cat sat on the mat.", "There is a dog.", "It rains, again and again.", "Nobody knows."]
GIVEN = ["The cat sat on a mat.", "A dog is there.", "", "Nobody knows."]


def test_bleu_and_chrf_are_sacrebleus():
    assert bleu(REFERENCES, GIVEN).value == pytest.approx(BLEU().corpus_score(GIVEN, [REFERENCES]).score)
    assert chrf(REFERENCES, GIVEN).value == pytest.approx(CHRF().corpus_score(GIVEN, [REFERENCES]).score)
    several = [[one, one.upper()] if at % 2 else [one] for at, one in enumerate(REFERENCES)]
    streams = [REFERENCES, [None, several[1][1], None, several[3][1]]]
    assert bleu(several, GIVEN).value == pytest.approx(BLEU().corpus_score(GIVEN, streams).score)  # pyright: ignore[reportArgumentType]
    wanted, given_ = ["今天天气很好，我们去公园。"], ["今天天气很好，我们去了公园。"]
    oracle = BLEU(tokenize="zh").corpus_score(given_, [wanted]).score
    assert bleu(wanted, given_, "zh").value == pytest.approx(oracle) and oracle > 50
    assert "tok:zh" in signature("bleu", "zh") and signature("chrf").startswith("nrefs:1|case:mixed|eff:yes|nc:6")


def test_a_resample_of_a_corpus_score_is_the_score_of_that_corpus():
    import numpy as np

    weights = np.array([[1, 1, 1, 1], [2, 0, 1, 1], [0, 4, 0, 0]], dtype=float)
    rows = [np.repeat(np.arange(4), row.astype(int)) for row in weights]
    for score, oracle in ((bleu, BLEU(effective_order=False)), (chrf, CHRF())):
        made = score(REFERENCES, GIVEN).of(weights)
        wanted = [oracle.corpus_score([GIVEN[i] for i in row], [[REFERENCES[i] for i in row]]).score for row in rows]
        assert made == pytest.approx(wanted)


def test_two_systems_on_bleu():
    found = compare(["bleu", "rouge-l"], REFERENCES * 10, REFERENCES * 10, GIVEN * 10)
    assert found["bleu"].first.value == pytest.approx(100) and found["bleu"].p == pytest.approx(1 / 1001)
    assert found["rouge-l"].difference.low is not None and found["rouge-l"].difference.low > 0


def test_bleu_without_sacrebleu_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ConfigError, match=r"pip install 'handscroll\[metrics\]'"):
        measure(["bleu"], ["a"], ["a"])


@pytest.mark.parametrize("name", ["rouge-1", "bleu", "chrf", "token-f1", "edit-similarity"])
def test_what_is_no_text_is_refused(name):
    for references, predictions, message in (
        (["a"], [None], "prediction 0 is None, not a text"),
        (["a", 3], ["a", "a"], "reference 1 is 3"),
        ([[]], ["a"], "reference 0 is \\[\\]"),
        ([], [], "nothing to score"),
        (["a"], ["a", "b"], "1 references and 2 predictions"),
    ):
        with pytest.raises(DataError, match=message):
            measure([name], references, predictions)


@pytest.mark.parametrize("name", ["rouge-1", "rouge-lsum", "bleu", "chrf"])
def test_an_empty_prediction_scores_nothing_and_an_empty_reference_is_refused(name):
    assert measure([name], ["some words here"], [""], Settings())[name].value == 0
    with pytest.raises(DataError, match="reference 0 has an empty text"):
        measure([name], [" "], ["some words"])


def test_digits_and_abbreviations_tell_no_language():
    mixed = ["2013年", "3个", "WTO", "GDP 2019", "1,000,000", "世界贸易组织"]
    assert language_of(mixed) == language_told(mixed) == "zh"
    assert language_told(["2013", "3.5"]) is None and language_told(["NASA", "1969"]) == "en"
    assert language_told(["The WTO in 北京"]) == "en"
