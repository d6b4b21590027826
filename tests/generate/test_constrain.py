"""Constrained decoding: whatever the model and the seed, what is whole follows the grammar."""

import json
import re
import subprocess
import sys

import jsonschema
import pytest
import torch

import handscroll
from handscroll.base.errors import ConfigError, DataError
from handscroll.extend.story import STARTER
from handscroll.generate.constrain import Constraint
from handscroll.generate.draft import DraftModel, Lookup
from handscroll.generate.sample import Sampling
from tests.generate.asking import decode
from tests.generate.material import chi_squared, tiny
from tests.naming import naming

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "bb", "你好"]}, "maxItems": 3},
        "fine": {"type": "boolean"},
    },
    "required": ["name", "age", "tags", "fine"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def lm(tiny_folder):
    return handscroll.load(tiny_folder)


@pytest.fixture(scope="module")
def starter():
    return handscroll.load(STARTER)


def answers(lm, constraint, prompt="def ", samples=1, drafts=None, **settings):
    """(text, finish) of every sample."""
    sampling = Sampling(**({"max_tokens": 60} | settings))
    tokens, ends = [[] for _ in range(samples)], [None] * samples
    options = {"samples": samples, "constraint": constraint, "drafts": drafts, "beyond": True}
    for step in decode(lm.model, [lm.encode(prompt)], sampling, lm.model.config.eos, **options):
        for item in step:
            tokens[item.row].append(item.token)
            ends[item.row] = item.finish
    words = [b"".join(_bytes(lm, token) for token in row) for row in tokens]
    return [(word.decode(errors="replace"), end) for word, end in zip(words, ends, strict=True)]


def _bytes(lm, token):
    from handscroll.text.spelling import spelling

    if not hasattr(lm, "spelled"):
        lm.spelled = spelling(lm.tokenizer)
    return lm.spelled[token] or b""


def check(found, fits):
    """Whole texts fit; returns how many were whole."""
    whole = [text for text, end in found if end in ("eos", "complete")]
    assert {end for _, end in found} <= {"eos", "complete", "length"}
    for text in whole:
        assert fits(text), text
    return len(whole)


def test_choices_may_hold_any_character(starter):
    for choice in ("a\x7fb", "\x00", "\x85", "\u2028", "\U0001f600", '\\"'):
        assert answers(starter, Constraint.choices([choice], starter.tokenizer)) == [(choice, "complete")]


@pytest.mark.parametrize("which", ["lm", "starter"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_choices(which, temperature, request):
    model, choices = request.getfixturevalue(which), ["yes", "no", "perhaps not", "yesterday", "你好，世界", "\\ \"'\n"]
    constraint = Constraint.choices(choices, model.tokenizer)
    samples = 1 if temperature == 0.0 else 40
    found = answers(model, constraint, samples=samples, temperature=temperature)
    assert check(found, choices.__contains__) == samples
    assert temperature == 0.0 or len({text for text, _ in found}) > 2


@pytest.mark.parametrize("which", ["lm", "starter"])
@pytest.mark.parametrize(
    "pattern", [r"[a-z]{2,5}=\d{1,3};", r"(ab|a你){1,4}c?", r"[a-zé]+ (is|was) [^x]{3,8}\.", r"2\d{3}-[01]\d"]
)
def test_regular_expressions(which, pattern, request):
    model = request.getfixturevalue(which)
    constraint = Constraint.regex(pattern, model.tokenizer)
    found = answers(model, constraint, samples=30, temperature=1.0, seed=1)
    assert check(found, re.compile(pattern).fullmatch) > 5
    assert check(answers(model, constraint), re.compile(pattern).fullmatch) <= 1


@pytest.mark.parametrize("which", ["lm", "starter"])
def test_json_under_a_schema(which, request):
    model = request.getfixturevalue(which)
    constraint = Constraint.schema(SCHEMA, model.tokenizer)

    def valid(text):
        jsonschema.validate(json.loads(text), SCHEMA)
        return True

    found = answers(model, constraint, samples=30, temperature=1.0, seed=2, max_tokens=150)
    assert check(found, valid) > 10
    assert check(answers(model, Constraint.schema(json.dumps(SCHEMA), model.tokenizer), max_tokens=150), valid) <= 1
    assert any("complete" in end or "eos" in end for _, end in found)


def test_one_token_may_cross_a_border_of_the_grammar(starter):
    """`):` and the like are one token: it must be allowed where the grammar has two pieces."""
    token = next(n for n in range(4096) if starter.tokenizer.token(n) == "):")
    progress = Constraint.regex(r"(\))(:)", starter.tokenizer).start(4096, ())
    allowed = torch.nonzero(progress.allowed())[:, 0].tolist()
    assert token in allowed and len(allowed) == 2
    progress.advance(token)
    assert progress.complete


def test_the_mask_is_what_the_texts_allow(lm):
    """Against the definition, at every step: a token is allowed when some choice goes on with it."""
    choices = ["banana", "band", "ban", "apple pie", "apple", "你好", "你"]
    constraint = Constraint.choices(choices, lm.tokenizer)
    words = [_bytes(lm, n) for n in range(lm.tokenizer.vocab_size)]
    end = lm.model.config.eos[0]
    for choice in choices:
        progress, before = constraint.start(lm.model.config.vocab, (end,)), b""
        for letter in choice.encode():
            texts = [text.encode() for text in choices]
            want = {n for n, w in enumerate(words) if w and any(text.startswith(before + w) for text in texts)}
            want |= {end} if before in texts else set()
            assert set(torch.nonzero(progress.allowed())[:, 0].tolist()) == want
            before += bytes([letter])
            progress.advance(words.index(bytes([letter])))


def test_an_end_token_is_taken_only_where_the_text_is_whole_and_ends_it(lm):
    constraint = Constraint.regex("a{2,200}", lm.tokenizer)
    found = answers(lm, constraint, samples=60, temperature=1.0, max_tokens=4)
    assert {"eos", "length"} == {end for _, end in found}
    assert all(re.fullmatch("a{2,}", text) for text, end in found if end == "eos")


def test_an_end_token_that_is_also_text_only_ends(lm):
    letter = lm.encode("b", special=False)[0]
    other = lm.encode("x", special=False)[0]
    progress = Constraint.regex("a(b|x)y?", lm.tokenizer).start(lm.model.config.vocab, (letter,))
    progress.advance(lm.encode("a", special=False)[0])
    assert progress.allowed()[other] and not progress.allowed()[letter]  # the text is not whole yet
    progress.advance(other)
    assert progress.allowed()[letter]
    with pytest.raises(ConfigError, match=naming(511, 300)):
        Constraint.regex("a", lm.tokenizer).start(300, ())


def test_without_an_end_token_the_text_goes_on_as_long_as_it_can(lm):
    constraint = Constraint.choices(["a", "ab", "abc"], lm.tokenizer)
    sampling = Sampling(max_tokens=9, temperature=1.0)
    steps = [step[0] for step in decode(lm.model, [[5]], sampling, (), constraint=constraint)]
    assert lm.decode([item.token for item in steps]) == "abc" and steps[-1].finish == "complete"


def test_max_tokens_in_the_middle_is_said(lm):
    found = answers(lm, Constraint.regex("[0-9]{30}", lm.tokenizer), max_tokens=4)
    assert found[0][1] == "length" and re.fullmatch("[0-9]{4,29}", found[0][0])


def test_rows_of_a_batch_have_states_of_their_own(lm):
    constraint = Constraint.regex(r"[a-f]{3,9}\.", lm.tokenizer)
    prompts = [lm.encode("def read("), lm.encode("x"), lm.encode("import os\n")]
    sampling = Sampling(max_tokens=12, temperature=1.5, repetition_penalty=1.2, seed=3)

    def rows(some, **options):
        found = {}
        for step in decode(lm.model, some, sampling, lm.model.config.eos, constraint=constraint, **options):
            for item in step:
                found.setdefault(item.row, []).append((item.token, item.finish))
        return [found[row] for row in range(len(found))]

    together = rows(prompts)
    assert together[0] == rows(prompts[:1])[0] and together[:2] == rows(prompts[:2])
    assert all(re.fullmatch(r"[a-f]{3,9}\.", lm.decode([t for t, _ in row])) for row in together)


def test_greedy_with_a_draft_is_greedy_without(lm):
    constraint = Constraint.schema(SCHEMA, lm.tokenizer)
    plain = answers(lm, constraint, max_tokens=80)
    for drafts in (Lookup(2), DraftModel(lm.model)):
        assert answers(lm, constraint, max_tokens=80, drafts=drafts) == plain
        assert drafts.acceptance.drafted > 0


def test_a_draft_does_not_change_the_distribution(lm):
    """Sampled under a constraint, plain and speculative decoding agree with the exact chances of four choices."""
    choices = ["aa", "ab", "ba", "bb"]
    constraint, prompt, count = Constraint.choices(choices, lm.tokenizer), "aab", 300
    letters = {letter: lm.encode(letter, special=False)[0] for letter in "ab"}
    words = {word: lm.encode(word, special=False) for word in choices}
    assert all(len(ids) == 2 for ids in words.values()), "no token may hold two letters in this test"
    ids, chances = lm.encode(prompt), []
    for word in choices:
        logits = lm.logits(ids + words[word])[len(ids) - 1 : -1].double()
        pairs = logits[:, list(letters.values())].softmax(-1)
        chances.append(float(pairs[0, "ab".index(word[0])] * pairs[1, "ab".index(word[1])]))
    for drafts in (None, Lookup(1), DraftModel(lm.model)):
        found = answers(lm, constraint, prompt, samples=count, temperature=1.0, seed=6, max_tokens=4, drafts=drafts)
        counts = torch.tensor([float([text for text, _ in found].count(word)) for word in choices])
        statistic, bound = chi_squared(counts, torch.tensor(chances) * count)
        assert int(counts.sum()) == count and statistic < bound


def test_impossible_grammars_are_refused(lm, babyllama):
    for make, words in (
        (lambda t: Constraint.regex("(a", t), "cannot.*unclosed group$"),
        (lambda t: Constraint.regex(r"(?=a)b", t), "cannot.*look-around.*not supported$"),
        (lambda t: Constraint.schema({"type": "string", "pattern": "(?=a)"}, t), "look-around.*not supported$"),
        (lambda t: Constraint('start: ("a"', t, "the grammar"), "used: Expected token"),
        (lambda t: Constraint.regex("a\ud800", t), "half a surrogate pair"),
        (lambda t: Constraint.choices(["a", "\udfff"], t), "half a surrogate pair"),
        (lambda t: Constraint.schema({"const": "\ud800"}, t), "half a surrogate pair"),
        (lambda t: Constraint.schema('{"properties": {"\\ud800": {}}}', t), "half a surrogate pair"),
        (lambda t: Constraint('start: "\ud800"', t, "the grammar"), "half a surrogate pair"),
        (lambda t: Constraint.choices([], t), "choice|one"),
        (lambda t: Constraint.choices(["a", ""], t), "empty"),
        (lambda t: Constraint.schema("{", t), "JSON"),
        (lambda t: Constraint.schema("[1]", t), "object"),
        (lambda t: Constraint.schema({"type": "string", "minLength": 3, "maxLength": 2}, t), "cannot"),
        (lambda t: Constraint.schema("false", t), naming("object", "false")),
        (lambda t: Constraint.schema({"type": "array", "uniqueItems": True}, t), "cannot"),
    ):
        with pytest.raises(ConfigError, match=words):
            make(lm.tokenizer)
    small = handscroll.load(babyllama)
    with pytest.raises(ConfigError, match="你好"):
        Constraint.choices(["yes", "你好"], small.tokenizer)
    with pytest.raises(ConfigError, match="allows no"):
        Constraint.regex("你+", small.tokenizer)
    assert answers(small, Constraint.choices(["yes", "no"], small.tokenizer), "Once")[0][0] in ("yes", "no")
    with pytest.raises(DataError, match="dead end"):
        answers(small, Constraint.regex("a你", small.tokenizer), "Once")


def test_stop_strings_and_ignored_ends_are_refused_beside_a_constraint(lm):
    constraint = Constraint.choices(["a"], lm.tokenizer)
    for settings in ({"stop": ("x",)}, {"ignore_eos": True}):
        with pytest.raises(ConfigError, match="constraint"):
            decode(lm.model, [[5]], Sampling(max_tokens=3, **settings), constraint=constraint)


def test_a_vocabulary_larger_than_the_tokenizer(lm):
    """Rows of the table that no token has (padding to a round number) are never chosen."""
    model = tiny(0, vocab=600).float()
    progress = Constraint.regex("[a-z]{3}", lm.tokenizer).start(600, (0,))
    allowed = progress.allowed()
    assert allowed.shape == (600,) and not allowed[lm.tokenizer.vocab_size :].any()
    assert model.config.vocab == 600


def test_without_the_library_the_message_says_what_to_install():
    code = (
        "import sys; sys.modules['llguidance'] = None\n"
        "import handscroll.lm\n"
        "from handscroll.generate.constrain import Constraint\n"
        "try: Constraint.regex('a', None)\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'handscroll[constrain]'" in done.stdout
