"""Speculative decoding: the rule in exact arithmetic, the distribution on a real model, greedy text token for token."""

import itertools

import pytest
import torch

from handscroll.base.errors import CapacityError, ConfigError
from handscroll.generate.draft import DraftModel, Lookup, Proposal
from handscroll.generate.sample import Sampling, candidates, generator
from handscroll.generate.speculative import accept, residual
from handscroll.kernels.native.library import library
from handscroll.models.weights import load_model
from handscroll.nn.attend import attend
from handscroll.nn.marks import Marks
from handscroll.nn.mask import Causal
from handscroll.nn.span import Span
from tests.conformance.families import reference, save
from tests.generate.asking import decode
from tests.generate.material import Letters, chi_squared, loaded, prompts_of, tiny, written
from tests.naming import naming


def distributions(seed, size=7):
    stream = torch.Generator().manual_seed(seed)
    p, q = torch.rand(2, size, generator=stream, dtype=torch.float64) ** 3
    p[torch.rand(size, generator=stream) < 0.3] = 0.0
    p[0], q[torch.rand(size, generator=stream) < 0.2] = 0.1, 0.0
    q[1] = 0.2
    return p / p.sum(), q / q.sum()


@pytest.mark.parametrize("seed", range(40))
def test_accepted_and_redrawn_tokens_add_up_to_the_target(seed):
    p, q = distributions(seed)
    total = torch.zeros_like(p)
    for guess in range(len(p)):
        if q[guess] > 0:
            share = min(1.0, float(p[guess] / q[guess]))
            total[guess] += q[guess] * share
            total += q[guess] * (1 - share) * residual(p, guess, q)
        certain = residual(p, guess, None) * (1 - p[guess])
        certain[guess] += p[guess]
        torch.testing.assert_close(certain, p, atol=1e-12, rtol=0)
    torch.testing.assert_close(total, p, atol=1e-12, rtol=0)


@pytest.mark.parametrize("certain", [True, False])
def test_drawn_tokens_follow_the_target(certain):
    p, q = distributions(3)
    stream, count = generator(9, 0), 20_000
    guesses = [int(torch.multinomial(q, 1, generator=stream)) for _ in range(count)]
    drawn = torch.tensor([accept(p, guess, None if certain else q, stream) for guess in guesses])
    statistic, bound = chi_squared(torch.bincount(drawn, minlength=len(p)).double(), p * count)
    assert statistic < bound
    assert not (drawn[:, None] == torch.nonzero(p == 0)[:, 0]).any()


@torch.no_grad()
def joint(model, prompt, sampling, count):
    """The exact distribution of the next `count` tokens: every sequence, from whole forwards, float64."""
    vocab = model.config.vocab
    chances = torch.zeros(vocab**count, dtype=torch.float64)
    every = list(itertools.product(range(vocab), repeat=count))
    found = model(torch.tensor([[*prompt, *tokens] for tokens in every]))
    for number, (tokens, logits) in enumerate(zip(every, found, strict=True)):
        chance = 1.0
        for place, token in enumerate(tokens):
            seen = torch.zeros(1, vocab, dtype=torch.bool)
            seen[0, prompt + list(tokens[:place])] = True
            scores = candidates(logits[len(prompt) - 1 + place][None], sampling, seen)
            chance *= float(scores.double().softmax(-1)[0, token])
        chances[number] = chance
    return chances


SETTINGS = {
    "plain": {},
    "hot": {"temperature": 1.7},
    "cut": {"temperature": 0.9, "top_k": 3, "top_p": 0.95},
    "penalised": {"repetition_penalty": 1.6, "min_p": 0.05},
}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("none", "plain"),
        ("draft", "penalised"),
        ("lookup", "hot"),
        ("lookup", "cut"),
        pytest.param("draft", "plain", marks=pytest.mark.long),
        pytest.param("lookup", "plain", marks=pytest.mark.long),
        pytest.param("lookup", "penalised", marks=pytest.mark.long),
    ],
)
def test_four_tokens_have_the_exact_joint_distribution(kind, settings):
    model, prompt, count, rows = tiny(3), [1, 2, 3, 1, 2, 3, 0, 1, 0, 3, 0, 2], 4, 600
    sampling = Sampling(**({"max_tokens": count, "temperature": 1.0, "seed": 5} | SETTINGS[settings]))
    expected = joint(model, prompt, sampling, count)
    assert float(expected.sum()) == pytest.approx(1.0, abs=1e-9)
    drafts = {"lookup": Lookup(1, longest=3), "draft": DraftModel(tiny(4), longest=3), "none": None}[kind]
    new = [0] * rows
    for step in decode(model, [prompt], sampling, samples=rows, drafts=drafts):
        for item in step:
            new[item.row] = new[item.row] * model.config.vocab + item.token
    counts = torch.bincount(torch.tensor(new), minlength=len(expected)).double()
    statistic, bound = chi_squared(counts, expected * rows)
    assert statistic < bound
    if drafts is not None:
        found = drafts.acceptance
        assert 0 < found.accepted < found.drafted and found.forwards < 3 * rows


@pytest.mark.parametrize("family", ["llama", "mistral-window", "qwen2-window", "gpt2"])
@pytest.mark.parametrize("kind", ["lookup", "draft", "itself"])
def test_greedy_tokens_are_those_of_plain_decoding(family, kind, tmp_path):
    model = loaded(tmp_path, family)
    prompts = [*prompts_of((5, 20, 1)), prompts_of((8,))[0] * 4]
    other = load_model(save(reference(family, seed=1), tmp_path / "other"))
    for penalty in (1.0, 1.3):
        sampling = Sampling(max_tokens=30, repetition_penalty=penalty)
        drafts = {"lookup": Lookup(1), "draft": DraftModel(other), "itself": DraftModel(model)}[kind]
        want = written(model, prompts, sampling, eos=(7, 2))
        assert written(model, prompts, sampling, eos=(7, 2), drafts=drafts) == want
        if kind == "itself":
            assert drafts.acceptance.rate == 1.0
            assert drafts.acceptance.forwards < sum(map(len, want[0])) / 3


@pytest.mark.parametrize("scaling", ["dynamic", "longrope"])
def test_greedy_under_a_scaling_that_depends_on_the_length(scaling, tmp_path):
    model = loaded(tmp_path, "llama", scaling)
    prompts, sampling = prompts_of((50, 10)), Sampling(max_tokens=40)
    for drafts in (Lookup(2), DraftModel(model)):
        assert written(model, prompts, sampling, drafts=drafts) == written(model, prompts, sampling)
    assert drafts.acceptance.rate == 1.0  # the draft model declares the same length


def test_greedy_over_an_int8_cache_and_small_chunks(tmp_path):
    model = loaded(tmp_path)
    prompts, sampling = prompts_of((20, 25)), Sampling(max_tokens=25)
    want = written(model, prompts, sampling, policy="int8")
    assert written(model, prompts, sampling, policy="int8", drafts=Lookup(1), chunk=7) == want


@torch.no_grad()
def test_bfloat16_differs_only_where_two_tokens_are_within_rounding(babyllama):
    """A forward of several tokens sums attention in another order; in bfloat16 two close logits may change places."""
    import handscroll

    lm = handscroll.load(babyllama, dtype="bfloat16")
    ids = lm.encode("Once upon a time, there was a little girl. Once upon a time, there was a ")
    sampling = Sampling(max_tokens=120)
    (plain,), _ = written(lm.model, [ids], sampling)
    (fast,), _ = written(lm.model, [ids], sampling, drafts=Lookup(3))
    logits = lm.logits(ids + fast)[len(ids) - 1 : -1]
    for row, token in zip(logits, fast, strict=True):
        assert float(row.max() - row[token]) <= 2 * float(row.max().abs()) * 2.0**-8
    apart = next((n for n, (a, b) in enumerate(zip(plain, fast, strict=True)) if a != b), None)
    if apart is not None:
        row = logits[apart]
        assert abs(float(row[plain[apart]] - row[fast[apart]])) <= 2 * float(row.max().abs()) * 2.0**-8


@pytest.mark.parametrize("count", [2, 8])
def test_attention_of_tokens_together_is_that_of_tokens_one_by_one(count):
    """In bfloat16 too: past and own tokens are scored in float32, so rounding seldom differs."""
    if library() is None:
        pytest.skip("no C++ compiler: without the compiled kernel the past is scored in bfloat16")
    torch.manual_seed(0)
    keys, values = torch.randn(2, 1, 2, 700 + count, 32).bfloat16()
    queries = torch.randn(1, 6, count, 32).bfloat16()

    def read(first, last):
        span = Span(keys[:, :, : 700 + last], values[:, :, : 700 + last], Marks.run(0, 700 + last))
        return attend(queries[:, :, first:last], [span], Causal(), Marks.run(700 + first, last - first))[0]

    alone = torch.cat([read(n, n + 1) for n in range(count)], dim=2)
    assert float((read(0, count) != alone).float().mean()) < 0.01


def test_rows_end_as_they_do_without_a_draft(tmp_path):
    model = loaded(tmp_path)
    prompts, sampling = prompts_of((8, 8)), Sampling(max_tokens=25)
    free, _ = written(model, prompts, sampling)
    drafts = DraftModel(model)  # guesses always right, also past the end
    stop = sampling.model_copy(update={"stop": (Letters().decode(free[1][2:4]),)})
    rows, ends = written(model, prompts, stop, eos=(free[0][5],), tokenizer=Letters(), drafts=drafts)
    cut = free[0].index(free[0][5]) + 1
    assert rows == [free[0][:cut], free[1][:4]] and ends == ["eos", "stop"]


def test_look_up_guesses_what_followed_last_time():
    draft = Lookup(2).begin(Sampling(), generator(0, 0), 0)
    tokens = [1, 2, 3, 4, 1, 2, 5, 6, 1, 2]
    assert draft.propose(tokens, 3) == Proposal([5, 6, 1])
    tokens += [5]
    assert draft.propose(tokens, 7) == Proposal([6, 1, 2, 5])
    assert draft.propose([*tokens, 9], 7) == Proposal([])
    assert Lookup(5).begin(Sampling(), generator(0, 0), 0).propose([1, 2], 3) == Proposal([])


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_a_draft_model_forgets_rejected_guesses(penalty, tmp_path):
    """What it proposes, and the chances it says, are those of a fresh one that reads the text as it is now."""
    model = loaded(tmp_path, dtype=torch.float64)
    sampling = Sampling(temperature=1.0, top_k=40, repetition_penalty=penalty)
    tokens = prompts_of((9,))[0]
    used = DraftModel(model).begin(sampling, generator(7, 0), 60)
    for seed, kept in enumerate((2, 0, 4, 3, 0)):
        used._stream = generator(7, seed)
        fresh = DraftModel(model).begin(sampling, generator(7, seed), 60)
        (guesses, chances), (want, wanted) = used.propose(tokens, 4), fresh.propose(tokens, 4)
        assert guesses == want
        torch.testing.assert_close(chances, wanted, atol=1e-9, rtol=0)
        tokens = [*tokens, *guesses[:kept], (guesses[kept % 4] + 1) % 97]


def test_room_is_kept_to_the_last_token(tmp_path):
    """Nothing is guessed past max_tokens, so a learned table of positions is enough where plain decoding fits."""
    model = loaded(tmp_path, "gpt2")
    prompts, sampling = [prompts_of((3,))[0] * 84 + [5]], Sampling(max_tokens=3)
    for drafts in (DraftModel(model), Lookup(1)):
        assert written(model, prompts, sampling, drafts=drafts) == written(model, prompts, sampling)
        assert drafts.acceptance.drafted <= 1


def test_refusals(tmp_path):
    model = loaded(tmp_path)
    with pytest.raises(ConfigError, match=naming(4, 97)):
        decode(model, [[3]], Sampling(max_tokens=5), drafts=DraftModel(tiny(0)))
    with pytest.raises(CapacityError, match=r"\b32\b"):
        decode(model, [[5] * 30], Sampling(max_tokens=5), drafts=DraftModel(tiny(0, vocab=97)))
    with pytest.raises(ConfigError, match="at least 1"):
        Lookup(0)
    with pytest.raises(ConfigError, match="at least 1"):
        DraftModel(model, longest=0)
