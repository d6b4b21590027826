"""The data report: counts against what was put in, bounded samples against full counts."""

import itertools
import json
import random
from functools import partial

import numpy as np
import pytest

from handscroll.cli.main import app
from handscroll.data.survey import letters, overlap
from handscroll.data.survey import survey as whole
from handscroll.data.survey.lengths import LengthCounts
from handscroll.data.survey.overlap import HeldOut
from handscroll.data.survey.sampled import Sampled
from handscroll.data.survey.shingles import NEAR, Hasher, Signature, near_pairs, runs
from handscroll.data.survey.survey import survey
from handscroll.report import render
from handscroll.report.corpus import corpus_page, percent
from handscroll.text.parts import parts
from handscroll.text.tokenizer import Tokenizer
from handscroll.text.training import TokenizerConfig, train_tokenizer
from handscroll.text.wordpiece import wordpiece_json
from tests.conftest import shared

ENGLISH = "It was the best of times, it was the worst of times; we had everything before us and there was nothing new. "
SIMPLE = "他们说今天的天气很好，我们出去走走吧，因为这里没有什么事情可以做，学校也没有开门。"
FULL = "他們說今天的天氣很好，我們出去走走吧，因為這裡沒有什麼事情可以做，學校也沒有開門。"
KANA = "これは日本語の文章です。今日はとても天気がいいので、散歩に行きましょう。"
CODE = "def f(x):\n    return {'a': [x[0], x[1]], 'b': (x > 0)};\n"
GERMAN = "Der schnelle braune Fuchs springt über den faulen Hund und läuft danach durch den grünen Wald nach Hause. "


def story(seed, words=200):
    """Words in an order of their own."""
    draw = random.Random(seed)
    return " ".join(f"word{draw.randrange(3000)}" for _ in range(words))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts")
    first = story(1)
    changed = first.split()
    changed[100] = "another"
    texts = {
        "english": ENGLISH * 10
        + "\nA line that is repeated, long enough to count as one.\n" * 3
        + "caf\u00c3\u00a9 <br/>",
        "one": first,
        "same": first,
        "near": " ".join(changed),
        "other": story(2),
        "simple": SIMPLE * 10,
        "full": FULL * 10,
        "kana": KANA * 10,
        "code": CODE * 20,
        "german": GERMAN * 10,
        "long": "x" * 10_001 + "\x07\ufffd\nshort",
        "short": "Too short.",
    }
    lines = [json.dumps({"text": text, "name": name}) for name, text in texts.items()]
    (path / "texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path, list(texts.values())


def test_what_was_put_in_is_found(folder):
    path, texts = folder
    got = survey(path)
    assert (got.files, got.documents) == (1, len(texts)) and got.coverage is None and got.overlap is None
    assert got.characters == sum(map(len, texts)) and got.bytes == sum(len(text.encode()) for text in texts)
    assert got.duplicates.documents == 1 and got.duplicates.examples == ((f"{path}/texts.jsonl:2", 2),)
    assert [pair[:2] for pair in got.duplicates.near] == [
        (f"{path}/texts.jsonl:{line}", f"{path}/texts.jsonl:2") for line in (3, 4)
    ]
    assert got.duplicates.near[0][2] == 1.0 and NEAR <= got.duplicates.near[1][2] < 1.0
    signs = {sign.name: (sign.count, sign.documents, sign.example.rpartition(":")[2]) for sign in got.signs}
    assert signs["mojibake"] == signs["markup"] == (1, 1, "1") and signs["very long lines"] == (1, 1, "11")
    assert signs["control characters"] == signs["odd characters"] == (1, 1, "11")
    assert signs["short documents"] == (1, 1, "12") and signs["boilerplate"][0] == 0
    repeated = [one for one in got.duplicates.common if "repeated" in one[0]]
    assert repeated and repeated[0][1:] == (3, 1)
    languages = dict(got.languages)
    for name, text in (("Chinese, simplified", SIMPLE), ("Chinese, traditional", FULL), ("Japanese", KANA)):
        assert languages[name] == pytest.approx(10 * len(text) / got.characters)
    assert languages["code"] == pytest.approx(20 * len(CODE) / got.characters) and languages["English"] > 0.05
    assert sum(languages.values()) == pytest.approx(1) and sum(share for _, share in got.scripts) == pytest.approx(1)
    assert got.lengths.least == len("Too short.") and got.lengths.most == max(map(len, texts))
    assert sum(got.lengths.counts) == len(texts)


def test_parts_of_any_size_give_the_same_report(folder, monkeypatch, tmp_path):
    path, texts = folder
    (tmp_path / "whole.txt").write_text("\n".join(texts), encoding="utf-8")
    tokenizer = train_tokenizer(texts, TokenizerConfig(vocab=300))
    want = survey([path, tmp_path], tokenizer, held_out=path)
    for module in (whole, overlap):
        monkeypatch.setattr(module, "parts", partial(parts, size=3000))
    got = survey([path, tmp_path], tokenizer, held_out=path)
    ignored = {"languages", "signs", "largest"}  # guessed block by block; few letters are a matter of parts
    assert got.model_dump(exclude=ignored) == want.model_dump(exclude=ignored)
    assert want.overlap is not None and want.overlap.share == 1.0 and percent(want.overlap.share) == "100.0%"


def test_runs_go_on_from_part_to_part(tmp_path):
    (tmp_path / "a.txt").write_text(story(3), encoding="utf-8")
    found = whole._Survey(None, "", Hasher(), None)
    for part in parts(tmp_path, size=100):
        found.add(part)
    want = Signature()
    want.add(runs(Hasher().words(story(3).split()), whole.SHINGLE))
    assert found.words == 200 and np.array_equal(found.signatures[0][1], want.least)


def test_a_full_sample_halves_and_still_estimates():
    draw, sample = random.Random(0), Sampled(500)
    keys = [draw.getrandbits(64) for _ in range(20_000)]
    copies = {key: 1 + (number % 4 == 0) for number, key in enumerate(keys)}
    stream = [key for key in keys for _ in range(copies[key])]
    draw.shuffle(stream)
    for place, key in enumerate(stream):
        sample.add(key, 10, "here", place)
    assert len(sample.seen) <= 500 and sample.level > 4
    assert all(found.times == found.documents == copies[key] for key, found in sample.seen.items())
    assert len(sample.seen) / sample.share == pytest.approx(20_000, rel=0.15)
    assert sample.repeated() == pytest.approx(0.2, abs=0.05)
    assert [one.times for one in itertools.islice(sample.commonest(), 3)] == [2, 2, 2]


def test_signatures_estimate_the_jaccard_index():
    hasher, pairs = Hasher(), []
    for kept in (0.5, 0.9, 0.99):
        one = story(5, 800).split()
        other = [word if random.Random(f"{place}{kept}").random() < kept else "new" for place, word in enumerate(one)]
        sets = [set(runs(hasher.words(words), 5).tolist()) for words in (one, other)]
        signatures = []
        for words in (one, other):
            signature = Signature()
            hashes = runs(hasher.words(words), 5)
            signature.add(hashes[:300])
            signature.add(hashes[300:])
            signatures.append(signature.least)
        truth = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        assert float((signatures[0] == signatures[1]).mean()) == pytest.approx(truth, abs=0.12)
        pairs.append((truth, near_pairs(signatures, near=0.7)))
    assert [bool(found) for _, found in pairs] == [truth >= 0.7 for truth, _ in pairs] == [False, False, True]
    assert runs(hasher.words(["a", "b"]), 3).size == 0


def test_overlap_counts_the_shared_half(tmp_path):
    half, rest = story(7, 300), story(8, 300)
    (tmp_path / "valid.txt").write_text(half + " " + story(9, 300), encoding="utf-8")
    (tmp_path / "clean.txt").write_text(story(10, 300), encoding="utf-8")
    (tmp_path / "train.txt").write_text(f"{rest} {half.upper()}, {rest}", encoding="utf-8")
    got = survey(tmp_path / "train.txt", held_out=[tmp_path / "valid.txt", tmp_path / "clean.txt"]).overlap
    assert got is not None and got.runs == 588 + 288
    shares = {name.rpartition("/")[2]: share for name, share in got.documents}
    assert shares == {"valid.txt": pytest.approx(288 / 588), "clean.txt": 0.0}
    held = HeldOut(tmp_path / "valid.txt", Hasher(), most=100)
    assert 25 <= len(held.keys) <= 100 and held.counts.level >= 2
    held.look(runs(Hasher().words(half.split()), 13))
    assert held.record().share == pytest.approx(288 / 588, abs=0.2)


def test_coverage_of_byte_level_and_word_pieces(tmp_path):
    text = "hello world hello 你好 hello"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    level = survey(tmp_path, train_tokenizer(["hello world " * 50], TokenizerConfig(vocab=266)), name="bytes").coverage
    assert level is not None and level.unknown == 0 and level.broken == 6 and level.spelled == 2 / len(text)
    assert dict(level.rare) == {"你": 1, "好": 1} and level.name == "bytes"
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] hello world".split()
    pieces = Tokenizer(wordpiece_json("\n".join(words) + "\n", {}, "vocab.txt"), {"unk_token": "[UNK]"})
    (tmp_path / "a.txt").write_text("hello world hello zebra", encoding="utf-8")
    found = survey(tmp_path, pieces).coverage
    assert found is not None and (found.tokens, found.unknown, found.used, found.half) == (4, 1, 3, 1)
    assert found.spelled == 20 / 23 and found.rare[0] == ("l", 5)  # no letter is a word by itself


def test_lengths_are_counted_by_classes():
    counts, draw = LengthCounts(), np.random.default_rng(0)
    lengths = np.exp(draw.normal(7, 1.5, 4000)).astype(int) + 1
    for length in lengths.tolist():
        counts.add(length)
    for share in (0.05, 0.25, 0.5, 0.9):
        assert counts.quantile(share) == pytest.approx(np.quantile(lengths, share), rel=0.06)
    record = counts.record()
    assert len(record.counts) <= 24 and sum(record.counts) == 4000
    inside = [((lengths >= a) & (lengths < b)).sum() for a, b in itertools.pairwise(record.edges)]
    assert np.abs(np.array(inside) - record.counts).max() <= 60  # edges are rounded to whole characters
    one = LengthCounts()
    one.add(1)
    assert one.record().counts == (1,) and one.record().median == 1


def test_every_character_has_a_script():
    names = {"a": "Latin", "é": "Latin", "中": "Han", "の": "Kana", "한": "Hangul", "ж": "Cyrillic", "1": "digits"}
    names |= {"\n": "spaces", "，": "signs", "\x01": "control", "\u200b": "odd", "ا": "Arabic", "\ue000": "odd"}
    for text, name in names.items():
        assert letters.SCRIPTS[letters.table()[ord(text)]] == name, (text, name)


def test_the_command_prints_and_writes_a_page(folder, tmp_path, capsys):
    path, _ = folder
    options = ["--valid", str(path), "--report", str(tmp_path / "out"), "--json", str(tmp_path / "record.json")]
    with pytest.raises(SystemExit) as ended:
        app(["data", "report", str(path), "--tokenizer", "handscroll/starter", *options])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and "Chinese, traditional" in shown and "very long lines" in shown
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and page.count("<svg") == 4 and "Duplicates" in page
    assert json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))["documents"] == 12


def test_pages_without_tokenizer_or_findings_render(tmp_path):
    (tmp_path / "a.txt").write_text(ENGLISH * 5, encoding="utf-8")
    page = render(corpus_page(survey(tmp_path), {"Files": "a.txt"}))
    assert "Coverage" not in page and "None was seen." in page and "Overlap" not in page


def test_real_text_is_what_its_readme_says():
    found = survey(shared("text_en/essays/mill_the_subjection_of_women.txt"))
    signs = {sign.name: sign.count for sign in found.signs}
    assert found.languages[0][0] == "English" and found.languages[0][1] > 0.99 and signs["mojibake"] == 9
    chinese = survey(shared("text_zh/modern/yu_dafu_chenlun.txt"))
    assert chinese.languages[0][0] == "Chinese, traditional"
    assert {sign.name: sign.count for sign in chinese.signs}["very long lines"] == 1
