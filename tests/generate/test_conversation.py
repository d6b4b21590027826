"""A conversation keeps what it read; outgrowing a bucket is exact by reading again, announced."""

import copy

import pytest
import torch

import handscroll
from handscroll.base.errors import CapacityError, ConfigError, DataError
from handscroll.cache.reading.store import Store
from handscroll.extend.methods import apply
from handscroll.generate.draft import Lookup
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling
from handscroll.lm import LM
from handscroll.nn.marks import Marks
from handscroll.nn.positions.candidate import Candidate
from handscroll.nn.positions.rotary import Rotary
from handscroll.nn.rope import rotation
from handscroll.nn.scaling.base import plain_frequencies
from handscroll.nn.scaling.dynamic import DynamicNTK
from handscroll.nn.scaling.dynamic_yarn import DynamicYaRN

SCALINGS = {
    "dynamic-ntk": {"name": "dynamic-ntk", "factor": 8.0, "original": 64},
    "dynamic-yarn": {"name": "dynamic-yarn", "factor": 8.0, "original": 64, "beta_fast": 8.0, "beta_slow": 0.5},
    "self-extend": {"name": "self-extend", "factor": 8.0, "original": 64, "window": 16, "group": 12},
}
TURNS = [
    "def read(path):\n    ",
    "\n\nclass Parser:\n    def __init__(self",
    "\n    return value\n",
    "import argparse\n" * 4,
]
SHORT = Sampling(max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def base(tiny_folder):
    return handscroll.load(tiny_folder)


def scaled(base, name):
    lm = LM(copy.deepcopy(base.model), base.tokenizer, base.source)
    before = base.model.config.positions
    values = {"base": before.base, "scaling": SCALINGS[name], "context": 512, "trained": 64}
    apply(lm.model, Candidate(name, "", {"positions": Rotary.parse(values, "test")}))
    return lm


def ids_of(talk):
    return talk.ids[: talk._cache.length]


def greedy(model, ids, count, length):
    """Token by token without any cache: the oracle."""
    ids = list(ids)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]), length=length)[0, -1].argmax()))
    return ids


@pytest.mark.parametrize("name", SCALINGS)
def test_every_turn_is_what_reading_everything_gives(base, name):
    lm = scaled(base, name)
    lm.model.double()
    talk, notes, ids, declared = lm.conversation(), [], [], 0
    talk.on_note = notes.append
    for turn in TURNS:
        ids = ids + lm.tokenizer.encode(turn, special=not ids)
        declared = max(declared, lm.model.config.positions.scaling.declared(len(ids) + SHORT.max_tokens))
        ids = greedy(lm.model, ids, SHORT.max_tokens, declared)
        reply = "".join(talk.say(turn, SHORT))
        assert talk.ids == ids
        assert reply and lm.decode(ids).endswith(reply)
        count, fresh = talk._cache.length, lm.model.new_cache()
        with torch.no_grad():
            lm.model(torch.tensor([ids[:count]]), cache=fresh, length=declared)
        for layer in range(fresh.layers):
            kept, read = (cache.columns(layer)["keys"][:, :, :count] for cache in (talk._cache, fresh))
            assert (kept - read).abs().max() < 1e-10
    assert not talk.approximate
    assert bool(notes) == (name != "self-extend")
    assert all("read again" in note for note in notes)


def test_what_was_read_is_not_read_again(base):
    lm = scaled(base, "self-extend")
    talk = lm.conversation()
    for turn in TURNS:
        list(talk.say(turn, SHORT))
    assert talk.tokens_read == len(talk.ids) - 1  # the last token of a reply is read with the next turn


@pytest.mark.parametrize("name", SCALINGS)
def test_saved_readings_serve_what_was_read_in_the_same_bucket(base, name, tmp_path):
    lm, store = scaled(base, name), Store(tmp_path)
    ids = lm.encode("def read(path):\n    return open(path).read()\n" * 4)
    lm.read(ids, store, room=20)
    prompt = ids + lm.encode("import", special=False)
    new = {"max_tokens": 8, "ignore_eos": True}
    assert store.find(lm.identity(len(prompt) + 8), torch.tensor(prompt[:-1])).length == len(ids)
    assert lm.generate(prompt, store=store, **new) == lm.generate(prompt, **new)
    if name != "self-extend":  # another bucket has other keys
        assert store.find(lm.identity(500), torch.tensor(prompt[:-1])) is None


@pytest.mark.parametrize("length", [1, 63, 64])
def test_short_requests_are_the_base_model_bit_for_bit(base, length):
    lm = scaled(base, "dynamic-yarn")
    tokens = torch.randint(0, 500, (1, length))
    with torch.no_grad():
        assert torch.equal(lm.model(tokens, length=length), base.model(tokens))
        assert length < 64 or not torch.equal(lm.model(tokens, length=65), base.model(tokens))


def test_buckets_are_powers_of_two_and_end_at_the_factor():
    scaling = DynamicYaRN(factor=6.0, original=64)
    buckets = [scaling.bucket(length) for length in (None, 1, 64, 65, 128, 129, 256, 257, 384, 1000)]
    assert buckets == [0, 0, 0, 128, 128, 256, 256, 384, 384, 384]
    yarn = DynamicYaRN(factor=6.0, original=64, beta_fast=8.0)
    assert torch.equal(yarn.inverse_frequencies(64, 1e4, 64), plain_frequencies(64, 1e4))
    assert [scaling.stretch(length) for length in (64, 65, 200, 400)] == [1.0, 2.0, 4.0, 6.0]
    like = torch.zeros(1)
    for either in (scaling, DynamicNTK(factor=6.0, original=64)):
        for declared in (128, 256):
            one, other = (
                rotation(Marks.run(0, 9), either, 1e4, 16, either.declared(length), like)
                for length in (declared - 5, declared)
            )
            assert torch.equal(one.cosine, other.cosine) and one.attention_factor == other.attention_factor


@pytest.mark.parametrize(
    "field",
    [{"samples": 3}, {"draft": Lookup(2)}, {"policy": "int8"}, {"chunk": 7}, {"on_report": print}],
)
def test_what_a_conversation_does_not_do_is_refused(base, field):
    talk = base.conversation()
    with pytest.raises(ConfigError, match="a conversation"):
        talk.reply(Request([5], SHORT, **field))
    assert not talk.ids


def test_a_reply_follows_the_other_fields_of_a_request(base):
    ended, ids = [], base.encode(TURNS[0])
    bias = {base.conversation().reply(Request(ids, SHORT)).__next__().token: -100.0}
    request = Request(ids, SHORT, bias=bias, logprobs=2, on_finish=ended.append)
    (want,) = base.continuations(ids, logprobs=2, max_tokens=12, ignore_eos=True, bias=bias, plain=True)
    found = list(base.conversation().reply(request))
    assert [one.token for one in found] == list(want.tokens) and ended == ["length"]
    assert [len(one.scored.top) for one in found] == [2] * 12
    for wrong in (-1, base.model.config.vocab):
        with pytest.raises(DataError, match=f"token id {wrong}"):
            base.conversation().reply(Request(ids, SHORT, bias={wrong: 1.0}))
        with pytest.raises(DataError, match=f"shall end with token id {wrong}"):
            base.generate(ids, ends=[wrong])


def test_a_refused_turn_leaves_an_exact_conversation_exact(base):
    """It would have outgrown the budget, and then there is no memory for it."""
    lm = scaled(base, "self-extend")
    each, notes, asked = lm.model.config.spec.cache_bytes(1, 4), [], []
    talk = lm.conversation(notes.append, kv_budget=each * 100, kv_guard=9.0)
    first = "".join(talk.say(TURNS[0], SHORT))
    allowed, held = talk.afford, talk._cache

    def refuse(demand, policy, chunk, freed):
        asked.append((demand.past, policy != "full", freed))
        raise CapacityError("no memory")

    talk.afford = refuse
    with pytest.raises(CapacityError, match="no memory"):
        talk.say(TURNS[3] * 2, SHORT)
    assert asked == [(0, True, held.nbytes)]  # what it holds now is given up for the other cache
    assert not talk.approximate and talk._cache is held and not notes
    talk.afford = allowed
    assert first and "".join(talk.say(TURNS[2], SHORT)) and talk.reused and not talk.approximate
    assert "".join(talk.say(TURNS[3] * 2, SHORT)) and talk.approximate and len(notes) == 1


def test_impossible_requests_are_refused(base):
    lm = scaled(base, "dynamic-yarn")
    talk = lm.conversation()
    with pytest.raises(DataError, match="no tokens"):
        talk.say("", SHORT)
    with pytest.raises(CapacityError, match=r"\b512\b"):
        talk.say("import re\n", Sampling(max_tokens=600))
    assert not talk.ids


@pytest.mark.parametrize("read", [False, True])
def test_a_turn_reserves_what_it_needs_and_no_more(base, tmp_path, read):
    """The plan of a turn counts its tokens: buffers that double would hold what nobody counted."""
    lm = scaled(base, "dynamic-ntk")
    text, sampling, store = TURNS[3] * 3, Sampling(max_tokens=5, ignore_eos=True), Store(tmp_path)
    talk = lm.conversation()
    if read:
        before = lm.read(lm.encode(text), store, room=200)
        talk.find = lambda *_: before.part(before.length - 1)
    kept = before.length - 1 if read else 0
    each = lm.model.config.spec.cache_bytes(1, 4)
    "".join(talk.say(text, sampling))
    assert talk._cache.nbytes == each * (len(talk.ids) - kept)
    for _ in range(3):
        "".join(talk.say("x", sampling))
        assert talk._cache.nbytes == each * (len(talk.ids) - kept)
