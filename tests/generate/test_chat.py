"""Chats: what the model would say to the rendered messages, reading only what is new; documents in the user's turn."""

import copy
import json
from datetime import datetime
from itertools import pairwise

import pytest
import torch

from handscroll.base.errors import CapacityError, ConfigError, DataError
from handscroll.cache.reading.store import Store
from handscroll.generate.ask import within
from handscroll.generate.chat import Reply, Speaker
from handscroll.generate.constrain import Constraint
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling
from handscroll.lm import LM, load
from handscroll.models.weights import load_model
from tests.conformance.families import reference, save
from tests.generate.readings import reads, windowed
from tests.text.chat_templates import THINKER

END = "<|endoftext|>"
PLAIN = (
    "{% for m in messages %}{{ m.role + ':<|endoftext|>' + m.content + '<|endoftext|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:<|endoftext|>' }}{% endif %}"
)
DATED = "{{ strftime_now('%H:%M:%S.%f') }}\n" + PLAIN
FORGETFUL = PLAIN.replace("m.content +", "(m.content if loop.revindex0 < 2 else '...') +")
ASKED = {"role": "user", "content": "import os\ndef read(path):"}
NEXT = {"role": "user", "content": "class Parser:\n    def __init__(self"}
TEXT = "import os\n\n\ndef walk(top):\n    for name in os.listdir(top):\n        yield os.path.join(top, name)\n" * 2


@pytest.fixture
def lm(stretched_folder):
    lm = load(stretched_folder)
    lm.tokenizer.settings["chat_template"] = PLAIN
    return lm


def fresh(lm, messages, count, template=""):
    """What `generate` says to the rendered messages, without any chat."""
    ids = Speaker(lm.tokenizer, template).render(messages).ids
    return lm.generate(ids, max_tokens=count)


def test_a_growing_chat_is_that_of_rendering_all_and_reads_only_what_is_new(lm, monkeypatch):
    messages = [ASKED]
    lengths = []
    for _ in range(3):
        counted = reads(lm, monkeypatch)
        reply = lm.chat(messages, max_tokens=9)
        monkeypatch.undo()
        assert isinstance(reply, Reply) and reply == fresh(lm, messages, 9)
        assert sum(counted) == reply.prompt - reply.reused + reply.tokens - 1
        lengths.append((reply.prompt, reply.reused))
        messages = [*messages, {"role": "assistant", "content": reply}, NEXT]
    for (before, _), (_, reused) in pairwise(lengths):
        assert reused >= before - 1  # and the answer, where its tokens are those of its text
    other = lm.chat([NEXT], max_tokens=5)
    assert other == fresh(lm, [NEXT], 5)


def test_pieces_add_up_and_two_streams_do_not_disturb_each_other(lm):
    one, other = lm.chat([ASKED], stream=True, max_tokens=12), lm.chat([NEXT], stream=True, max_tokens=12)
    found = ["", ""]
    for first, second in zip(one, other, strict=False):
        found[0] += first
        found[1] += second
    found[0] += "".join(one)
    found[1] += "".join(other)
    assert found == [fresh(lm, [ASKED], 12), fresh(lm, [NEXT], 12)]


def test_an_answer_that_was_left_early_goes_on_rightly(lm):
    pieces = lm.chat([ASKED], stream=True, max_tokens=30)
    said = next(pieces)
    pieces.close()
    messages = [ASKED, {"role": "assistant", "content": said}, NEXT]
    assert lm.chat(messages, max_tokens=9) == fresh(lm, messages, 9)


def test_a_template_that_rewrites_history_is_followed_and_said(lm):
    notes, messages = [], [ASKED]
    for turn in range(3):
        reply = lm.chat(messages, template=FORGETFUL, max_tokens=9, on_note=notes.append)
        assert reply == fresh(lm, messages, 9, FORGETFUL)
        assert (reply.reused < reply.prompt // 2) == (turn > 0) or not turn
        messages = [*messages, {"role": "assistant", "content": reply}, NEXT]
    assert any("read again: the template writes them otherwise" in note for note in notes)
    assert any("leaves out or changes message 0" in note for note in notes)


def test_the_token_that_ends_a_turn_ends_an_answer(lm):
    end = lm.tokenizer.written[END]
    lm.model.config = lm.model.config.model_copy(update={"eos": ()})
    assert Speaker(lm.tokenizer).ends(lm.model) == {end}
    first = lm.encode(fresh(lm, [ASKED], 1), special=False)
    with torch.no_grad():  # now the end is what the model would say first
        for table in {lm.model.embedding.weight, getattr(lm.model.projection, "weight", lm.model.embedding.weight)}:
            table[[first[0], end]] = table[[end, first[0]]]
    assert lm.chat([ASKED], max_tokens=9).finish in ("eos", "length")


@pytest.mark.parametrize("family", ["gemma3_text", "gemma2"])
def test_windows_that_cannot_be_cut_back_are_read_again(lm, family, tmp_path):
    """Their windowed layers keep 64 tokens beside the window; an answer taken back further costs a new reading."""
    model = load_model(save(reference(family), tmp_path / family))
    size = model.config.vocab
    base = [n for n in range(40, 90) if n < size]
    talk = LM(model, lm.tokenizer, "x").conversation()

    def answered(ids):
        return [
            one.token
            for one in talk.reply(Request(ids, Sampling(max_tokens=6, ignore_eos=True), beyond=True), _Numbers())
        ]

    long = base + base[::-1]
    first = answered(long)
    again = answered(long)
    assert first == again and talk.reused == len(long) - 1
    other = [*long[:10], 7, *long[11:]]
    found = answered(other)
    assert talk.reused in (0, 10)
    talk.ids, talk._cache = [], None
    assert answered(other) == found


class _Numbers:
    def decode(self, ids):
        return "".join(chr(0x4E00 + number) for number in ids)


def test_thinking_is_kept_apart_and_given_back_to_the_template(lm):
    thought = []
    template = PLAIN.replace("'assistant:<|endoftext|>'", "'assistant:<think>\n'")
    grammar = Constraint.regex("Hm[.]\n</think>\n\n(Yes|No)", lm.tokenizer)
    reply = lm.chat([NEXT], template=template, constraint=grammar, max_tokens=60, on_thinking=thought.append)
    assert reply in ("Yes", "No") and reply.thinking == "".join(thought) == "Hm."
    message = {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}
    text = Speaker(lm.tokenizer, THINKER).render([ASKED, message, {"role": "tool", "content": "x"}]).text
    assert "<think>\nHm.\n</think>\n\nYes." in text
    assert "Hm." not in Speaker(lm.tokenizer, THINKER).render([ASKED, message, NEXT]).text


def test_special_tokens_in_a_message_end_nothing(lm):
    end = lm.tokenizer.written[END]
    ids = Speaker(lm.tokenizer).render([{"role": "user", "content": f"a{END}b"}]).ids
    assert ids.count(end) == 3  # two around the message, and one before the answer


def test_what_does_not_fit_or_is_wrong_is_refused(lm):
    long = {"role": "user", "content": "import re\n" * 90}
    with pytest.raises(CapacityError, match="400"):
        lm.chat([long])
    with pytest.raises(CapacityError, match="400"):
        lm.chat([ASKED], max_tokens=400)
    assert lm.chat([ASKED], max_tokens=3).finish == "length"
    with pytest.raises(ConfigError, match="max_tokens"):
        lm.chat([ASKED], max_token=3)
    with pytest.raises(DataError, match="list of messages"):
        lm.chat([])
    with pytest.raises(ConfigError, match="no chat template"):
        lm.tokenizer.settings["chat_template"] = None
        lm._chat = None
        lm.chat([ASKED])


@pytest.mark.parametrize("template", [PLAIN, DATED])
def test_a_document_stands_in_the_users_turn_and_is_read_once(lm, tmp_path, monkeypatch, template):
    lm.tokenizer.settings["chat_template"] = template
    store = Store(tmp_path)
    lm.read(TEXT, store, "code", room=60)
    document = store.document("code")
    assert document.text == TEXT
    question = "What does walk do?"
    messages = [{"role": "user", "content": f"{TEXT}\n\n{question}"}]
    ids = Speaker(lm.tokenizer).render(messages, now=datetime.fromtimestamp(document.when)).ids
    counted = reads(lm, monkeypatch)
    answer = lm.ask("code", question, store, max_tokens=9)
    monkeypatch.undo()
    assert sum(counted) < len(lm.encode(question)) + 30
    assert answer == lm.generate(ids, max_tokens=9)
    followed = "\nIn short: {question}"
    ids = (
        Speaker(lm.tokenizer)
        .render(
            [{"role": "user", "content": TEXT + followed.replace("{question}", question)}],
            now=datetime.fromtimestamp(document.when),
        )
        .ids
    )
    assert lm.ask("code", question, store, followed, max_tokens=9) == lm.generate(ids, max_tokens=9)
    if template == PLAIN:
        reply = lm.chat(messages, store=store, max_tokens=9)
        assert reply == answer and reply.reused >= store.named("code")[1] - 1


def test_a_plain_text_and_ids_are_read_as_they_are(lm, tmp_path):
    store = Store(tmp_path)
    lm.read(lm.encode(TEXT), store, "raw", room=60)
    assert store.document("raw") is None
    ids = lm.encode(TEXT) + lm.encode("\n\nQuestion: why?\nAnswer:", special=False)
    assert lm.ask("raw", "why?", store, max_tokens=9) == lm.generate(ids, max_tokens=9)
    lm.read(TEXT, store, "name", room=60)
    lm.read(lm.encode(TEXT), store, "name", room=60)
    assert store.document("name") is None and not list(store.folder.glob("names/name*.txt"))
    lm.read(TEXT, store, "name", room=60)
    store.forget("name")
    assert not list(store.folder.glob("names/name*"))


def test_a_reading_within_another_template_is_not_used(lm, tmp_path):
    store = Store(tmp_path)
    lm.read(TEXT, store, "code", room=60)
    lm.tokenizer.settings["chat_template"] = "Read this.\n" + PLAIN
    with pytest.raises(ConfigError, match="another chat template"):
        lm.ask("code", "why?", store, max_tokens=9)
    assert lm.ask("code", "why?", store, max_tokens=9, again=True)


def test_windows_that_do_not_reach_back_are_read_again_if_that_is_allowed(lm, tmp_path):
    """The new template shares less of the reading than its windowed layers keep."""
    store = Store(tmp_path)
    windowed(lm, 8)
    lm.read(TEXT * 2, store, "code", room=60)
    lm.tokenizer.settings["chat_template"] = PLAIN.replace("m.content +", "m.content[:120] + '!' + m.content +")
    with pytest.raises(ConfigError, match="another chat template"):
        lm.ask("code", "why?", store, max_tokens=9)
    document = store.document("code")
    rendered = within(Speaker(lm.tokenizer), document, "\n\nwhy?")
    assert lm.ask("code", "why?", store, max_tokens=9, again=True) == lm.generate(rendered.ids, max_tokens=9)


def test_a_copy_of_a_model_has_a_chat_of_its_own(lm):
    lm.chat([ASKED], max_tokens=3)
    other = LM(copy.deepcopy(lm.model), lm.tokenizer, lm.source)
    assert other._chat is None and other.chat([ASKED], max_tokens=3) == lm.chat([ASKED], max_tokens=3)


def test_another_conversation_is_told_the_time_of_its_own(lm, monkeypatch):
    """Turns of one conversation, taken back ones too, keep the time of the first."""
    times = iter(datetime(2026, 1, day) for day in range(1, 9))

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return next(times)

    monkeypatch.setattr("handscroll.generate.chat.datetime", Clock)
    told, ask = [], lambda messages, **more: lm.chat(messages, template=DATED, **{"max_tokens": 3} | more)
    real = Speaker.render
    monkeypatch.setattr(Speaker, "render", lambda *given: told.append(given[-1].day) or real(*given))
    longer = [ASKED, {"role": "assistant", "content": ask([ASKED])}, NEXT]
    for messages in (longer, [ASKED], longer):
        ask(messages)
    with pytest.raises(CapacityError):
        ask([NEXT], max_tokens=900)
    ask(longer)
    ask([NEXT])
    assert told == [1, 1, 1, 1, 2, 1, 3]


def test_tools_and_variables_reach_the_template(lm):
    source = "{{ tools | tojson }}{{ mode }}{{ messages[0].content }}"
    text = Speaker(lm.tokenizer, source).render([ASKED], {"tools": [{"name": "f"}], "mode": "x"}).text
    assert text == json.dumps([{"name": "f"}]) + "x" + ASKED["content"]
