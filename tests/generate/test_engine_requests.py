"""What a request may ask of the engine is what `generate` gives alone; a callback that raises ends its own job."""

import pytest
import torch

import handscroll
from handscroll.base.errors import ConfigError, DataError
from handscroll.extend.story import STARTER
from handscroll.generate.chooser import Chooser, next_tokens
from handscroll.generate.constrain import Constraint, Progress
from handscroll.generate.draft import Lookup
from handscroll.generate.engine.engine import Engine
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling

PROMPTS = ["def read(self", "import os\n", "class Reader:\n    def", "x"]
GREEDY = Sampling(max_tokens=16)


@pytest.fixture(scope="module")
def lm():
    return handscroll.load(STARTER, dtype="float32")


@pytest.fixture
def engine(lm, deterministic):
    return Engine(lm.model, lm.tokenizer, blocks=60, block=8, deterministic=deterministic, budget=64, poison=True)


def finished(engine):
    for _ in engine.run():
        pass
    assert engine.blocks.available == engine.blocks.count


both = pytest.mark.parametrize("deterministic", [False, True])


def test_a_prompt_that_is_no_request_is_refused(lm):
    for prompt in ([1, 2, 3], "def read"):
        with pytest.raises(ConfigError, match=r"Request\("):
            Engine(lm.model, lm.tokenizer, blocks=2).submit(prompt)


@both
def test_constraints_stops_seeds_and_log_probabilities_are_those_of_generate(lm, engine):
    """Every request has settings of its own, and all run together."""
    digits = Constraint.regex("[0-9]{2,6}", lm.tokenizer)
    words = Constraint.choices(["yes", "no", "perhaps"], lm.tokenizer)
    asked = [
        (PROMPTS[0], {"max_tokens": 20, "constraint": digits}, 2),
        (PROMPTS[1], {"max_tokens": 30, "temperature": 0.9, "seed": 3, "stop": ["e", "\n"]}, 0),
        (PROMPTS[2], {"max_tokens": 12, "temperature": 1.2, "top_p": 0.9, "repetition_penalty": 1.3, "seed": 8}, 5),
        (PROMPTS[3], {"max_tokens": 9, "temperature": 1.0, "seed": 1, "constraint": words}, None),
        (PROMPTS[3], {"max_tokens": 7}, None),
    ]
    jobs = []
    for prompt, settings, logprobs in asked:
        sampling = Sampling.parse({k: v for k, v in settings.items() if k != "constraint"}, "test")
        request = Request(lm.encode(prompt), sampling, logprobs=logprobs, constraint=settings.get("constraint"))
        jobs.append(engine.submit(request))
    finished(engine)
    for job, (prompt, settings, logprobs) in zip(jobs, asked, strict=True):
        (want,) = lm.continuations(prompt, logprobs=logprobs or 0, **settings)
        assert (job.text, tuple(job.answer), job.finish) == (want.text, want.tokens, want.finish)
        assert job.logprobs == pytest.approx([one.logprob for one in want.scored], abs=1e-4)
        if logprobs is not None:
            assert [[pair[0] for pair in one.top] for one in job.scored] == [
                [pair[0] for pair in one.top] for one in want.scored
            ]
    assert {job.finish for job in jobs} >= {"complete", "stop", "length"}


@both
def test_a_callback_that_raises_ends_its_job_and_no_other(lm, engine):
    heard, fault = [], RuntimeError("callback")

    def raises(new):
        if len(broken.answer) == 2:
            raise fault

    first = engine.submit(Request(lm.encode(PROMPTS[0]), GREEDY))
    broken = engine.submit(Request(lm.encode(PROMPTS[1]), GREEDY), on_token=raises)
    last = engine.submit(Request(lm.encode(PROMPTS[2]), GREEDY), on_token=lambda new: heard.append(new.token))
    finished(engine)
    assert (broken.finish, broken.error, len(broken.answer)) == ("error", fault, 2)
    for job, prompt in ((first, PROMPTS[0]), (last, PROMPTS[2])):
        (want,) = lm.continuations(prompt, max_tokens=16)
        assert (tuple(job.answer), job.finish, job.error) == (want.tokens, "length", None)
    assert heard == last.answer


@both
def test_tokens_that_an_interruption_kept_back_are_delivered_by_the_next_step(lm, engine):
    heard, pressed = [], []

    def interrupted(new):
        if not pressed:
            pressed.append(new)
            raise KeyboardInterrupt

    engine.submit(Request(lm.encode(PROMPTS[0]), GREEDY), on_token=interrupted)
    other = engine.submit(Request(lm.encode(PROMPTS[1]), GREEDY), on_token=lambda new: heard.append(new.token))
    with pytest.raises(KeyboardInterrupt):
        finished(engine)
    finished(engine)
    (want,) = lm.continuations(PROMPTS[1], max_tokens=16)
    assert tuple(heard) == tuple(other.answer) == want.tokens


@both
def test_a_grammar_that_leads_nowhere_ends_its_job_alone(lm, engine, monkeypatch):
    constraint = Constraint.regex("[0-9]{5}", lm.tokenizer)
    real = Progress.allowed

    def allowed(progress):
        if len(lost.answer) == 2:
            raise DataError("a dead end")
        return real(progress)

    monkeypatch.setattr("handscroll.generate.constrain.Progress.allowed", allowed)
    lost = engine.submit(Request(lm.encode(PROMPTS[0]), GREEDY, constraint=constraint))
    other = engine.submit(Request(lm.encode(PROMPTS[1]), GREEDY))
    steps = list(engine.run())
    assert lost.finish == "error" and isinstance(lost.error, DataError) and len(lost.answer) == 2
    assert [new.token for step in steps for new in step if new.job is lost][-1] is None
    assert other.finish == "length" and len(other.answer) == 16


@both
def test_a_choice_that_fails_ends_its_job_alone(lm, engine, monkeypatch):
    """Whatever goes wrong in choosing a token: an error that stays would come back at every step."""
    real, fault = Chooser.take, IndexError("no such token")

    def take(chooser, token, logits):
        if chooser is broken.chooser and len(broken.answer) == 2:
            raise fault
        return real(chooser, token, logits)

    monkeypatch.setattr(Chooser, "take", take)
    broken = engine.submit(Request(lm.encode(PROMPTS[0]), GREEDY))
    other = engine.submit(Request(lm.encode(PROMPTS[1]), GREEDY))
    finished(engine)
    assert (broken.finish, broken.error, len(broken.answer)) == ("error", fault, 2)
    assert other.finish == "length" and len(other.answer) == 16


@pytest.mark.parametrize(
    "wrong",
    [
        lambda lm: Request([5], samples=2),
        lambda lm: Request([5], draft=Lookup(2)),
        lambda lm: Request([5], policy="int8"),
        lambda lm: Request([5], chunk=16),
        lambda lm: Request([5], on_report=print),
    ],
)
def test_what_the_engine_does_not_do_is_refused(lm, wrong):
    engine = Engine(lm.model, blocks=10)
    with pytest.raises(ConfigError, match="the engine"):
        engine.submit(wrong(lm))
    assert engine.idle


def test_rows_of_one_forward_choose_by_settings_of_their_own(lm):
    """Together, in any mixture, each row takes the token that it takes alone."""
    letters = Constraint.regex("[a-z]+", lm.tokenizer)
    requests = [
        Request([5, 6], Sampling(temperature=0.8, top_k=9, seed=4)),
        Request([7], Sampling(repetition_penalty=1.7)),
        Request([8, 9], Sampling(temperature=0.8, top_k=9, seed=5), constraint=letters),
        Request([8, 9], Sampling(temperature=0.8, top_k=9, seed=4)),
    ]
    logits = torch.randn(4, lm.model.config.vocab, generator=torch.Generator().manual_seed(0)) * 3
    for some in ([0, 1, 2, 3], [0, 2, 3], [1]):
        made = [Chooser(requests[row], lm.model, row) for row in some]
        alone = [next_tokens([Chooser(requests[row], lm.model, row)], logits[row : row + 1])[0] for row in some]
        assert next_tokens(made, logits[some]) == alone


@both
def test_a_bias_acts_as_in_generate_and_what_was_shared_is_counted(lm, engine):
    ids = lm.encode(PROMPTS[2] * 6)
    usual = lm.continuations(ids, max_tokens=6)[0].tokens
    bias = {usual[0]: -100.0, usual[1]: 3.0}
    want = lm.generate(ids, max_tokens=6, bias=bias)
    assert want != lm.decode(usual)
    first = engine.submit(Request(ids, Sampling(max_tokens=6), bias=bias))
    finished(engine)
    other = engine.submit(Request(ids, Sampling(max_tokens=6)))
    finished(engine)
    assert first.text == want and other.answer == list(usual)
    assert first.reused == 0 and len(ids) - 64 <= other.reused < len(ids) and other.reused % 8 == 0
    with pytest.raises(ConfigError, match="without a bias"):
        lm.beams(ids, bias=bias)
    with pytest.raises(DataError, match="a bias is given for token id"):
        engine.check(Request(ids, bias={lm.model.config.vocab: 1.0}))
