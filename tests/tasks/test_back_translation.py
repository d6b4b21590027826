"""Rows made by a translation into another language and back: how models are asked, what is counted and refused."""

import json

import pytest

from handscroll.base.errors import CheckpointError, ConfigError
from handscroll.data.table.augment import NoText
from handscroll.models.adapters import write_task
from handscroll.tasks import back_translation
from handscroll.tasks.back_translation import CUT, LONG, BackTranslation, Translator
from handscroll.tasks.finetune import Options, finetune
from handscroll.tasks.made import Made
from handscroll.tasks.recipe import Augment
from handscroll.tasks.task import Prediction
from handscroll.tasks.translate import Translate
from handscroll.tasks.writer import Writer, Written
from tests.tasks.chats import saved
from tests.tasks.material import recipe, rows, table, tiny

ALL = Options()
TEXTS = ["the quick fox", "the lazy dog"]


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def asked(monkeypatch):
    """What models are asked, as pairs of their source and the prompt; each answers with the text in capitals."""
    said = []

    def write(self, messages, most, place, smaller=""):
        said.append((self.lm.source, messages[-1]["content"], most))
        text = messages[-1]["content"].rpartition("\n\n")[2]
        return Written(text.upper(), "length" if "LAZY" in text else "eos", 1, 0, 1, -1.0)

    monkeypatch.setattr(Writer, "write", write)
    return said


def tuned(folder, template=True, **more):
    """A folder of a model that was tuned to translate with these settings."""
    saved(folder, template=template)
    write_task(json.dumps(Translate(**more).model_dump(mode="json")).encode(), folder)
    return folder


def way(model, **more):
    return BackTranslation(Augment(way="translate", model=str(model), **more))


def test_a_chat_model_is_asked_there_and_back_in_the_languages_of_the_texts(chat, asked):
    assert way(chat)([*TEXTS, " "]) == ["THE QUICK FOX", NoText(CUT), " "]
    assert [prompt for _, prompt, _ in asked] == [
        "Translate from English into Chinese. Write only the translation.\n\nthe quick fox",
        "Translate from English into Chinese. Write only the translation.\n\nthe lazy dog",
        "Translate from Chinese into English. Write only the translation.\n\nTHE QUICK FOX",
        "Translate from Chinese into English. Write only the translation.\n\nTHE LAZY DOG",
    ]
    asked.clear()
    way(chat, max_tokens=5)(["北京大学"])
    assert asked[0][1:] == ("请把下面的中文翻译成英文，只写译文。\n\n北京大学", 5)
    asked.clear()
    way(chat, language="German", pivot="French")(["der Hund"])
    assert "from German into French" in asked[0][1] and "from French into German" in asked[1][1]


def test_a_random_model_is_decoded_and_what_is_cut_or_too_long_is_told(chat):
    short, long = way(chat, max_tokens=3)(["fox", "fox " * 2000])
    assert (short, long) == (NoText(CUT), NoText(LONG))


def test_a_tuned_model_is_asked_as_it_was_tuned(tmp_path, chat, asked):
    own = {"prompt": "to {target_language}:\n\n{source}", "source_language": "Old", "target_language": "New"}
    there = tuned(tmp_path / "there", **own)
    (tmp_path / "run").mkdir()
    back = tuned(tmp_path / "run" / "model", source_language="New", target_language="Old", max_tokens=7)
    way(there, back=str(tmp_path / "run"))(["fox"])
    assert [(source, most) for source, _, most in asked] == [(str(there), 128), (str(back), 7)]
    assert asked[0][1] == "to New:\n\nfox"
    asked.clear()
    way(chat, back=str(back))(["fox"])
    assert "from Old into New" in asked[0][1]
    asked.clear()
    with pytest.raises(ConfigError, match="tuned to translate from Old into New, and is to translate from New into"):
        way(there)(["fox"])
    with pytest.raises(ConfigError, match="tuned to translate from Old into New, and is to translate from A into B"):
        way(there, back=str(chat), language="A", pivot="B")(["fox"])
    assert not asked, "it is refused before anything is translated"


def test_models_that_cannot_translate_are_refused_at_once(tmp_path, chat):
    with pytest.raises(ConfigError, match="has no chat template"):
        way(chat, back=str(saved(tmp_path / "plain", template=False)))
    with pytest.raises(ConfigError, match="take a causal model"):
        way(tiny(tmp_path / "bert"))
    assert Translator.at(str(tuned(tmp_path / "bare", template=False))).tuned is not None


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"model": ""}, "they need it"),
        ({"copies": 2}, "copies is 2, but way 'translate' takes the likeliest"),
        ({"share": 0.2}, "share is of words"),
        ({"pivot": "French"}, "give both or neither"),
        ({"way": "swap", "model": "", "back": "other"}, "back belongs to way 'translate', not to 'swap'"),
        ({"way": "replace", "max_tokens": 9}, "max_tokens belongs to way 'translate', not to 'replace'"),
    ],
)
def test_settings_that_would_say_nothing_are_refused(settings, match):
    with pytest.raises(ConfigError, match=match):
        Augment.parse({"way": "translate", "model": "chat", **settings}, "data.augment")


def test_a_run_learns_from_translated_rows_counts_them_and_never_scores_them(tmp_path, chat, monkeypatch):
    def prompted(self, lm, examples, prompting):
        told = [one["source"] if one["source"].startswith("w21") else f"{one['source']} w9" for one in examples]
        return [Prediction(text, {"finish": "eos"}) for text in told]

    monkeypatch.setattr(back_translation.Translate, "prompted", prompted)
    given = recipe(
        tiny(tmp_path / "bert"),
        table(tmp_path / "train.csv", 20),
        {"epochs": 1},
        augment={"way": "translate", "model": str(chat)},
    )
    done = []
    finetune(given, tmp_path / "run", Options(on_done=lambda *told: done.append(told)))
    account = json.loads((tmp_path / "run" / "result.json").read_text())["tables"]["train"]
    assert account["added"][0]["reason"] == "rows made by 'translate'" and account["added"][0]["count"] == 9
    assert account["notes"] == ["'translate' left 9 texts without a new row: 9 as they were"]
    assert all("augmented" not in one for one in rows(tmp_path / "run" / "valid.predictions.jsonl"))
    there = "translating into Chinese and back"
    assert done == [(there, 18, 8), (there, 18, 16), (there, 18, 18), ("scoring valid", 2, 2)]


@pytest.fixture
def run(tmp_path, chat, monkeypatch):
    """A function that tunes on 18 texts and translations in one folder, and the texts that were translated."""
    texts, limit = [], [10**6]

    def prompted(self, lm, examples, prompting):
        if len(texts) >= limit[0]:
            raise KeyboardInterrupt
        texts.extend(one["source"] for one in examples)
        return [Prediction(f"{one['source']} w9", {"finish": "eos"}) for one in examples]

    monkeypatch.setattr(back_translation.Translate, "prompted", prompted)
    model, data = tiny(tmp_path / "bert"), table(tmp_path / "train.csv", 20)

    def start(options=ALL, **more):
        augment = {"way": "translate", "model": str(chat), **more}
        return finetune(recipe(model, data, {"epochs": 1}, augment=augment), tmp_path / "run", options)

    return start, texts, limit


def test_a_run_that_was_stopped_translates_nothing_twice(tmp_path, run):
    start, texts, limit = run
    limit[0] = 20  # both ways of eight texts, and of a part of the next eight
    with pytest.raises(KeyboardInterrupt):
        start()
    [kept] = (tmp_path / "run").glob("translations-*.jsonl")
    assert len(kept.read_text().splitlines()) == 8
    with kept.open("a", encoding="utf-8") as file:
        file.write('{"text": "w20 w30')  # a line that a kill cut off
    before, limit[0], told = len(texts), 10**6, []
    tuned = start(Options(show=lambda text: told.append(str(text))))
    assert f"translations: 8 of 18 texts are in {kept} already" in told
    assert tuned.finished and len(texts) - before == 2 * 10
    assert len(kept.read_text().splitlines()) == 18
    again = start(Options(only_plan=True))
    assert not again.finished and len(texts) - before == 2 * 10


def test_other_settings_have_other_translations(tmp_path, run):
    start, texts, _ = run
    start()
    start(Options(only_plan=True), max_tokens=5)
    assert len(texts) == 2 * 18 * 2 and len(list((tmp_path / "run").glob("translations-*.jsonl"))) == 1


@pytest.mark.parametrize("options", [Options(only_plan=True), Options(only_show=1)])
def test_a_plan_or_a_look_writes_no_translations(tmp_path, run, options):
    start, texts, _ = run
    start(options)
    assert texts and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("{broken", r"\.jsonl, line 1: this line is not JSON"),
        ("3", r"\.jsonl, line 1: expected"),
        ("{}", r"\.jsonl, line 1: this record has no 'text'"),
    ],
)
def test_a_damaged_line_of_translations_is_named(tmp_path, line, match):
    made = Made(tmp_path)
    path = made.path("t", {})
    path.write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=rf"t-[0-9a-f]*{match}"):
        made.each("t", {}, ["a"], lambda texts: texts, lambda total, done: None)


def test_a_start_with_other_settings_is_refused_before_anything_is_translated(tmp_path, run):
    start, texts, _ = run
    start()
    before = len(texts)
    with pytest.raises(CheckpointError, match=r"differs in: data\.augment\.max_tokens: 0, now 5"):
        start(max_tokens=5)
    assert len(texts) == before and len(list((tmp_path / "run").glob("translations-*.jsonl"))) == 1


def test_what_no_translation_came_of_is_kept_too(tmp_path):
    made, asked = Made(tmp_path), []

    def make(texts):
        asked.extend(texts)
        return [NoText(CUT) if text == "b" else text.upper() for text in texts]

    for _ in range(2):
        assert made.each("t", {}, ["a", "b", "a"], make, lambda total, done: None) == ["A", NoText(CUT), "A"]
    assert asked == ["a", "b"]
