"""Branches of one reading equal readings of their own, in every family that reads forward."""

import pytest
import torch

import handscroll
from handscroll.base.errors import ConfigError, DataError
from handscroll.evaluate.branching import answer_by_argmax, begin, greedy, matches, read
from tests.conformance.families import FORMS
from tests.naming import naming

FORWARD = [name for name, form in FORMS.items() if form.config.spec.reads == "forward" and form.config.spec.predicts]
EXACT = 1e-11  # of hidden states in float64


def ids(rows, length, seed=0):
    return torch.randint(20, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


def whole(model, row, length):
    """The states (T, D) of a text that is read at once."""
    return begin(model, length).read(row, len(row))[0]


@pytest.mark.parametrize("name", FORWARD)
def test_branches_are_exact(name):
    """A text in two parts, two branches of several rows, and a branch of a branch: each equals its own whole text."""
    model = FORMS[name].build()
    text, first, second, last = ids(1, 30)[0], ids(3, 7, 1), ids(3, 9, 2), ids(3, 5, 3)
    prefix = begin(model, 52)
    prefix.read(text[:11])
    prefix.read(text[11:])
    for more in (first, second):
        branch = prefix.branch()
        for row, state in zip(more, branch.read(more, more.shape[1]), strict=True):
            want = whole(model, torch.cat([text, row]), 52)[30:]
            assert (state - want).abs().max() < EXACT
    deeper = branch.branch()  # of the second
    state = deeper.read(last, 2)
    for number in range(3):
        want = whole(model, torch.cat([text, second[number], last[number]]), 52)[-2:]
        assert (state[number] - want).abs().max() < EXACT
    assert (prefix.length, branch.length, deeper.length) == (30, 39, 44)
    again = prefix.branch().read(first[:1], 7)
    assert (again - whole(model, torch.cat([text, first[0]]), 52)[30:]).abs().max() < EXACT, "branches left no trace"
    assert prefix.tally.tokens == 30 + 3 * 7 + 3 * 9 + 3 * 5 + 7


@pytest.fixture(scope="module")
def lm(tiny_folder):
    return handscroll.load(tiny_folder)


def test_a_forced_answer_is_what_greedy_decoding_writes(lm):
    """The model's own continuation is a match, and no longer one after any change."""
    text, question = lm.encode("def main(self):\n    return"), lm.encode(" self", special=False)
    prefix = read(lm, text, 64)
    said = greedy(prefix.branch(), question, 6)
    assert len(said) == 6 and lm.decode(said) == lm.generate(text + question, max_tokens=6)
    assert answer_by_argmax(prefix.branch(), question, said)
    for at in range(6):
        other = [*said[:at], (said[at] + 1) % 512, *said[at + 1 :]]
        assert not answer_by_argmax(prefix.branch(), question, other)
    rows = matches(prefix.branch(), [question, question], [said, [*said[:5], 0]])
    assert rows == [True, said[5] == 0]
    assert greedy(prefix.branch(), question, 6, ends={said[2]}) == said[: said.index(said[2])]


def test_quantised_weights_stay_as_they_are(tiny_folder):
    """Rounded weights: branches say what a reading of the whole text says, up to the rounding of cached keys."""
    lm = handscroll.load(tiny_folder, weights="int8")
    text, question = lm.encode("import os\n\n\ndef walk(top):\n"), lm.encode("    for name in", special=False)
    branch = read(lm, text, 64).branch().read(question, len(question))
    torch.testing.assert_close(branch[0], whole(lm.model, text + question, 64)[len(text) :], atol=2e-2, rtol=2e-2)


def test_what_cannot_be_read_is_refused(lm):
    for text, reach in (([], None), ([5] * 20, 10)):
        with pytest.raises(DataError, match="tokens"):
            read(lm, text, reach)
    with pytest.raises(DataError, match=naming(0)):
        answer_by_argmax(read(lm, [5, 6]).branch(), [7], [])
    with pytest.raises(ConfigError, match="both directions"):
        begin(FORMS["bert"].build(), 10)
