"""The likelihood of given continuations: many at once what each is alone, and shared contexts read once."""

import pytest
import torch

import handscroll
from handscroll.base.errors import CapacityError, DataError
from handscroll.extend.story import STARTER
from handscroll.generate import likelihood as module
from handscroll.generate.likelihood import loglikelihood, split_pair
from tests.generate.material import loaded, prompts_of


def alone(model, context, continuation):
    """By the whole logits, in one forward."""
    with torch.no_grad():
        logits = model(torch.tensor([[*context, *continuation[:-1]]]))[0].log_softmax(-1)[len(context) - 1 :]
    wanted = torch.tensor(continuation)
    return float(logits.gather(1, wanted[:, None]).sum()), bool((logits.argmax(-1) == wanted).all()), len(wanted)


def pairs_of(model):
    """Contexts of their own, one that four continuations share, and one that the model itself continues."""
    contexts, continuations = prompts_of((5, 30, 1, 17, 22)), prompts_of((3, 1, 9, 4, 2, 6, 1, 1), seed=1)
    found = [(context, some) for context, some in zip(contexts, continuations, strict=False)]
    found += [(contexts[1], some) for some in continuations[4:]]
    with torch.no_grad():
        greedy = [int(model(torch.tensor([contexts[3]]))[0, -1].argmax())]
        greedy.append(int(model(torch.tensor([[*contexts[3], *greedy]]))[0, -1].argmax()))
    return [*found, (contexts[3], greedy), (contexts[3], greedy[:1])]


@pytest.mark.parametrize("worth", [1, 1000])
@pytest.mark.parametrize("family", ["llama", "mistral-window", "gpt2", "qwen3"])
def test_many_at_once_are_what_each_is_alone(family, worth, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WORTH", worth)
    monkeypatch.setattr(module, "TOGETHER", 100)
    model = loaded(tmp_path, family, dtype=torch.float64)
    pairs = pairs_of(model)
    found = loglikelihood(model, pairs)
    for (context, continuation), one in zip(pairs, found, strict=True):
        logprob, greedy, tokens = alone(model, context, continuation)
        assert one.logprob == pytest.approx(logprob, abs=1e-9)
        assert (one.greedy, one.tokens) == (greedy, tokens)
    assert [one.greedy for one in found[-2:]] == [True, True] and not all(one.greedy for one in found)


def test_a_shared_context_is_read_once(tmp_path, monkeypatch):
    model = loaded(tmp_path, dtype=torch.float64)
    read = []
    real = type(model).hidden
    monkeypatch.setattr(
        type(model), "hidden", lambda self, x, *a: read.append(x.shape[:2].numel()) or real(self, x, *a)
    )
    (context,) = prompts_of((50,))
    choices = prompts_of((3, 3, 3, 3), seed=2)
    loglikelihood(model, [(context, choice) for choice in choices])
    assert sum(read) == 50 + 4 * 2


@pytest.mark.parametrize("scaling", ["dynamic"])
def test_rows_of_different_rotary_tables_do_not_mix(scaling, tmp_path):
    model = loaded(tmp_path, "llama", scaling, torch.float64)
    pairs = list(zip(prompts_of((5, 70, 12, 150)), prompts_of((3, 9, 4, 2), seed=1), strict=True))
    apart = [loglikelihood(model, [pair], beyond=True)[0] for pair in pairs]
    for one, other in zip(loglikelihood(model, pairs, beyond=True), apart, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-9)


def test_texts_are_encoded_together():
    lm = handscroll.load(STARTER, dtype="float32")
    context, continuation = split_pair(lm.tokenizer, "def read(self, ", "size)")
    assert lm.decode(context) == "def read(self," and lm.decode(continuation) == " size)"
    found = lm.loglikelihood([("for line in ", "lines:"), ("for line in", " lines:"), ("import", " os")])
    assert found[0] == found[1]
    ids, new = split_pair(lm.tokenizer, "import", " os")
    want = -lm.nll([*ids, *new])[len(ids) - 1 :].sum()
    assert found[2].logprob == pytest.approx(float(want), abs=1e-4)


@pytest.mark.parametrize(
    ("context", "continuation"), [("th", "e cat"), ("th", "e"), ("def rea", "d(self)"), ("x ", "y")]
)
def test_a_token_over_the_border_leaves_no_character_out_of_the_score(context, continuation):
    lm = handscroll.load(STARTER, dtype="float32")
    ids, new = split_pair(lm.tokenizer, context, continuation)
    assert lm.decode(ids) == context.rstrip() and lm.decode(new) == " " * context.endswith(" ") + continuation
    want = -lm.nll([*ids, *new])[len(ids) - 1 :].sum()
    assert lm.loglikelihood([(context, continuation)])[0].logprob == pytest.approx(float(want), abs=1e-4)


def test_wrong_pairs_are_refused(tmp_path):
    model = loaded(tmp_path)
    with pytest.raises(DataError, match="pair 1"):
        loglikelihood(model, [([5], [6]), ([5], [])])
    with pytest.raises(DataError, match="97"):
        loglikelihood(model, [([5], [97])])
    with pytest.raises(CapacityError, match="65"):
        loglikelihood(model, [([5] * 60, [6] * 5)])
    assert loglikelihood(model, [([5] * 60, [6] * 5)], beyond=True)[0].tokens == 5
    assert loglikelihood(model, []) == []


def test_examples_before_many_questions_are_read_once(tmp_path, monkeypatch):
    """Two kinds of examples, each before three questions, of which one has two continuations; and a stranger."""
    monkeypatch.setattr(module, "WORTH", 20)
    model = loaded(tmp_path, dtype=torch.float64)
    first, second, stranger = prompts_of((30, 25, 12))
    own, continuations = prompts_of((4, 7, 5, 6, 3, 8), seed=3), prompts_of((3, 1, 4, 2, 5, 3, 2, 2), seed=4)
    contexts = [*(first + some for some in own[:3]), *(second + some for some in own[3:]), stranger, first + own[0]]
    pairs = list(zip(contexts, continuations, strict=True))
    read = []
    real = type(model).hidden
    monkeypatch.setattr(
        type(model), "hidden", lambda self, x, *a: read.append(x.shape[:2].numel()) or real(self, x, *a)
    )
    found = loglikelihood(model, pairs)
    assert sum(read) < 160 < sum(len(context) for context in contexts)
    for (context, continuation), one in zip(pairs, found, strict=True):
        assert one.logprob == pytest.approx(alone(model, context, continuation)[0], abs=1e-9)
