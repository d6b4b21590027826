"""A budget of bytes: what policies take is known, the nearest cache is taken by measurement, the rest is refused."""

import re
from itertools import pairwise

import pytest
import torch

from handscroll.base.errors import CapacityError, ConfigError
from handscroll.cache.full import FullCache
from handscroll.cache.table import POLICIES, cache_of, footprint
from handscroll.generate import budget as module
from handscroll.generate.budget import Demand, candidates, choose, size_of
from handscroll.generate.divergence import Way, decoded, distance, said
from handscroll.generate.prefill import hidden_chunks
from handscroll.lm import load
from handscroll.models.weights import load_model
from handscroll.nn.marks import Marks
from tests.conformance.families import reference, save
from tests.naming import naming
from tests.nn.material import SELF_EXTEND, model_with

TEXT = "import os\n\n\ndef walk(top):\n    for name in os.listdir(top):\n        yield os.path.join(top, name)\n\n" * 4


@pytest.fixture(scope="module")
def lm(tiny_folder):
    return load(tiny_folder)


@pytest.fixture(autouse=True)
def _short_tails(monkeypatch):
    monkeypatch.setattr(module, "TAIL", 24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(reference("llama"), tmp_path_factory.mktemp("budget"))


def watched(cache):
    """The cache, and a list of what it holds at the end of every forward, before anything is put away or evicted."""
    sizes, commit = [], cache.commit

    def watch():
        sizes.append(cache.nbytes)
        commit()
        sizes.append(cache.nbytes)

    cache.commit = watch
    return cache, sizes


SMALL = {"offload": ":block=32,recent=32", "retrieval": ":recent=32"}  # so that a short text is put away
NAMES = [f"{name}:budget=70" if kind.evicts else name + SMALL.get(name, "") for name, kind in POLICIES.items()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("policy", NAMES)
def test_what_a_policy_takes_is_what_is_said_of_it(policy, dtype, folder):
    model, chunk, prompt, new = load_model(folder, dtype=dtype), 24, 200, 20
    tokens = torch.randint(3, 97, (1, prompt + new - 1), generator=torch.Generator().manual_seed(0))
    cache, sizes = watched(cache_of(policy)(model.config.layers, capacity=prompt + new - 1))
    list(hidden_chunks(model, tokens[:, :prompt], Marks.run(0, prompt), cache, None, chunk))
    with torch.no_grad():
        for at in range(prompt, prompt + new - 1):
            model(tokens[:, at : at + 1], Marks.run(at, 1), cache)
    made = footprint(policy, model.config, dtype.itemsize)
    peak, held = made.peak(prompt, new, chunk), made.held(prompt + new - 1)
    full = model.config.spec.cache_bytes(1, dtype.itemsize)
    if policy.startswith(("offload", "retrieval")):  # the runs that are read back are as long as this text, not 4,096
        assert max(sizes) <= peak < 2 * 4096 * full
        assert made.filed * (prompt + new) >= cache.filed > made.filed * (prompt - 64)
        return
    # Buffers of the newest tokens are counted beside the chunk; names and masses of a chunk are not in `nbytes` yet.
    unnamed = prompt if made.whole else chunk
    slack = 64 * full if policy == "int4" else unnamed * 12 * 3 if made.most else 0
    assert max(sizes) <= peak <= max(sizes) + slack
    assert cache.nbytes <= held <= cache.nbytes + slack
    if policy == "int4":  # room for whole blocks
        assert cache.nbytes == made.each * ((prompt + new - 1) // 32 * 32) + made.fixed


def test_sizes_as_people_write_them():
    wanted = {
        "2GiB": 2 << 30,
        "1.5 kb": 1500,
        "50%": 500,
        "12.5%": 125,
        "7": 7,
        9: 9,
        "3MB": 3_000_000,
        "1TiB": 1 << 40,
    }
    assert {text: size_of(text, 1000) for text in wanted} == wanted
    for text in ("", "GiB", "2 giraffes", "-1", "50 %%", "1e9"):
        with pytest.raises(ConfigError, match="2GiB"):
            size_of(text, 1000)


def test_a_full_cache_that_fits_is_taken_and_nothing_is_said(lm):
    request = Demand(lm.encode(TEXT), 20)
    full = request.bytes("full", lm.model, 1024)
    choice = choose(lm.model, lm.tokenizer, request, full)
    assert choice.policy == "full" and choice.report() == "" and choice.record()["exact"]
    assert choose(lm.model, lm.tokenizer, request, full - 1).policy == "int8"


def test_the_nearest_of_those_that_fit_is_taken(lm):
    request = Demand(ids := lm.encode(TEXT), 20)
    choice = choose(lm.model, lm.tokenizer, request, "65%")
    assert [one.policy for one, _ in choice.tried] == ["int8"], "the finest rounding is near enough"
    assert choice.policy == "int8" and 0 < choice.loss.kl < module.GUARD and choice.nbytes <= choice.allowed
    assert 64 <= choice.piece <= len(ids) and choice.written == 0
    assert choose(lm.model, lm.tokenizer, request, "65%") == choice
    said = choice.report()
    assert said.startswith("int8 takes ") and "KL mean" in said and "needle" not in said, "the tasks cost too much"
    least = choose(lm.model, lm.tokenizer, request, "30%", guard=9)
    assert {one.policy.partition(":")[0] for one, _ in least.tried} >= {"window", "sinks", "h2o", "tova"}
    assert least.loss.kl == min(loss.kl for _, loss in least.tried)


@pytest.mark.parametrize(("share", "guard", "fewest"), [("65%", 0.01, 300), ("30%", 9, 150)])
def test_a_choice_reads_a_tenth_of_the_prompt_at_most(lm, monkeypatch, share, guard, fewest):
    read, embed = [], lm.model.embed
    monkeypatch.setattr(lm.model, "embed", lambda ids, marks: read.append(ids.numel()) or embed(ids, marks))
    ids = (lm.encode(TEXT + TEXT) * 40)[:6000]
    choose(lm.model, lm.tokenizer, Demand(ids, 20), share, guard)
    assert fewest <= sum(read) <= 600 and len(read) <= 100, "and few forwards for it"


def test_a_long_prompt_affords_the_tasks(lm, monkeypatch):
    monkeypatch.setattr(module, "COST", 20)
    said = choose(lm.model, lm.tokenizer, Demand(lm.encode(TEXT), 20), "65%").report()
    assert "needle " in said and "copying " in said


@torch.no_grad()
def test_the_divergence_is_that_of_a_plain_loop(lm, monkeypatch):
    """For a request that ends with its prompt, so that the piece is the whole and nothing is scaled."""
    ids = lm.encode(TEXT + TEXT)
    monkeypatch.setattr(module, "FREE", 9 * len(ids))
    choice = choose(lm.model, lm.tokenizer, Demand(ids, 1), "30%", guard=9)
    assert choice.piece == len(ids)
    found, first = {}, len(ids) - module.TAIL
    edges = [*range(0, first, choice.chunk), *range(first, len(ids) - 1, module.STEP), len(ids) - 1]
    for name in ("full", choice.policy):
        cache, parts = cache_of(name)(2), []
        for begin, end in pairwise(edges):
            logits = lm.model(torch.tensor([ids[begin:end]]), Marks.run(begin, end - begin), cache)
            scores = logits.double().log_softmax(-1)[0]
            parts += [scores[-1:]] if end == first else [scores] * (end > first)
        found[name] = torch.cat(parts)
    exact, other = found["full"], found[choice.policy]
    kl = (exact.exp() * (exact - other)).sum(-1)
    assert choice.policy.partition(":")[0] in ("window", "sinks", "h2o", "tova") and len(kl) == module.TAIL
    assert choice.loss.kl == pytest.approx(float(kl.mean()), rel=1e-2, abs=1e-7)
    assert choice.loss.worst == pytest.approx(float(kl.max()), rel=1e-2, abs=1e-6)


@pytest.mark.parametrize("share", ["40%", "75%"])
def test_the_budget_is_kept_at_any_time(share, lm, monkeypatch):
    from handscroll.generate import decode

    made, real = [], decode.cache_of

    def spied(policy):
        return lambda *words, **options: made.append(watched(real(policy)(*words, **options))) or made[-1][0]

    ids = lm.encode(TEXT)
    request, settings = Demand(ids, 30), {"max_tokens": 30, "beyond": True}
    allowed = size_of(share, request.bytes("full", lm.model, 1024))
    for one in candidates(lm.model, request, allowed):
        monkeypatch.setattr(decode, "cache_of", spied)
        choice = module.Choice(*one, 0, allowed)
        text = lm.generate(ids, kv_budget=choice, **settings)
        monkeypatch.undo()
        assert max(made[-1][1]) <= one.nbytes <= allowed, one
        if one.policy == "int8":  # what was chosen is what is used
            assert text == lm.generate(ids, policy="int8", **settings)
    assert len(made) >= 5


def test_what_is_refused_says_what_would_pass(lm):
    request = Demand(lm.encode(TEXT), 20)
    full = request.bytes("full", lm.model, 1024)
    with pytest.raises(CapacityError, match=naming("guard", "0.")) as refused:
        choose(lm.model, lm.tokenizer, request, "65%", guard=0.0)
    assert f"--kv-budget {full}: full" in str(refused.value) and "--cache offload" in str(refused.value)
    # Between rounding and eviction.
    allowed = size_of("30%", full)
    least = choose(lm.model, lm.tokenizer, request, allowed, guard=9).loss.kl
    with pytest.raises(CapacityError, match="nearest") as refused:
        choose(lm.model, lm.tokenizer, request, allowed, guard=least * 0.9)
    needed, policy = re.search(r"--kv-budget (\d+): (\w+)", str(refused.value)).groups()
    assert allowed < int(needed) < full and policy in ("int8", "int4")
    assert choose(lm.model, lm.tokenizer, request, int(needed), guard=least * 0.9).policy.startswith(policy)
    assert least <= float(re.search(r"--kv-guard ([\d.]+)", str(refused.value))[1]) < least + 0.011


def test_wrong_budgets_are_refused(lm):
    request = Demand(lm.encode(TEXT), 20)
    block = 64 * lm.model.config.spec.cache_bytes(1, 4)
    for budget, guard, words in (
        (block - 1, 0.1, r"\b64\b"),
        ("1%", 0.1, r"\b64\b"),
        ("50%", -1, naming("guard", -1)),
        ("50%", float("nan"), naming("guard", "nan")),
        ("lots", 0.1, "2GiB"),
    ):
        with pytest.raises(ConfigError, match=words):
            choose(lm.model, lm.tokenizer, request, budget, guard)
    with pytest.raises(CapacityError, match="room"):
        choose(lm.model, lm.tokenizer, Demand(lm.encode(TEXT), 20, samples=2), block)


def test_only_what_suits_the_request_is_a_candidate(lm):
    ids = lm.encode(TEXT)
    names = lambda request, model=lm.model: {  # noqa: E731
        one.policy.partition(":")[0] for one in candidates(model, request, request.bytes("full", model, 64) * 3 // 4)
    }
    assert names(Demand(ids, 20)) == {"int8", "int4", "window", "sinks", "h2o", "tova"}  # the prompt is too long
    assert "snapkv" in names(Demand(ids[:100], 100))
    assert "snapkv" not in names(Demand(ids[:100], 100, grows=True))
    assert names(Demand(ids, 20, samples=3)) == names(Demand(ids, 20, rewinds=True)) == {"int8"}
    banded = model_with(SELF_EXTEND)
    assert names(Demand(list(range(3, 90)) * 3, 200), banded) == {"int8", "int4", "window", "sinks"}


def test_samples_share_a_prompt_within_the_budget(lm):
    request = Demand(lm.encode(TEXT), 20, samples=3)
    one = request.bytes("full", lm.model, 1024)
    each = lm.model.config.spec.cache_bytes(1, 4)
    assert one == each * (len(request.prompt) + 3 * 19)
    reports = []
    settings = {"max_tokens": 5, "beyond": True, "on_report": reports.append}
    found = lm.continuations(TEXT, 2, kv_budget="60%", **settings)
    want = lm.continuations(TEXT, 2, policy="int8", max_tokens=5, beyond=True)
    assert [item.tokens for item in found] == [item.tokens for item in want]
    assert len(reports) == 1 and reports[0].startswith("approximate: int8 takes")


def test_a_short_prompt_is_continued_by_the_model_for_the_measure(lm):
    request = Demand(lm.encode("import os"), 400)
    choice = choose(lm.model, lm.tokenizer, request, "60%")
    assert module.SHORTEST <= choice.piece <= module.LEAST and choice.written == choice.piece - len(request.prompt)
    assert f"{choice.written} of them written by the model" in choice.report()


def test_what_excludes_a_budget_is_refused(lm, tmp_path):
    from handscroll.cache.reading.store import Store

    with pytest.raises(ConfigError, match="'int8'"):
        lm.generate(TEXT, kv_budget="50%", policy="int8", beyond=True)
    with pytest.raises(ConfigError, match="reading"):
        lm.generate(TEXT, kv_budget="50%", store=Store(tmp_path), beyond=True)
    with pytest.raises(CapacityError, match=r"\b64\b"):
        lm.generate(TEXT, kv_budget="50%")


PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"


def test_a_guard_without_a_budget_is_refused(lm):
    for ask in (
        lambda: lm.generate("x", kv_guard=0.5, max_tokens=2),
        lambda: lm.generate("x", kv_guard=-5, max_tokens=2),
        lambda: lm.generate(TEXT, kv_guard=0.5, kv_budget=lm.choose_cache(TEXT, "100%", 2, beyond=True), beyond=True),
        lambda: lm.chat([{"role": "user", "content": "x"}], template=PLAIN, kv_guard=0.5),
        lambda: lm.chatting(PLAIN, kv_guard=0.5),
        lambda: lm.conversation(kv_guard=0.5),
        lambda: lm.conversation(kv_guard=-5, kv_budget="50%"),
    ):
        with pytest.raises(ConfigError, match="guard"):
            ask()


def test_a_conversation_is_exact_until_it_outgrows_its_budget(stretched_folder):
    from handscroll.generate.sample import Sampling

    longer = load(stretched_folder)
    each = longer.model.config.spec.cache_bytes(1, 4)
    lines, settings, notes = ["import os\n\n", TEXT[:120], TEXT[:200], "x = 1\n"], Sampling(max_tokens=12), []
    plain, bounded = longer.conversation(), longer.conversation(on_note=notes.append, kv_budget=each * 150)
    for number, line in enumerate(lines):
        want, got = ("".join(talk.say(line, settings)) for talk in (plain, bounded))
        assert bounded._cache.nbytes <= each * 150, number
        if len(bounded.ids) <= 150:
            assert got == want and not bounded.approximate and not notes
    assert bounded.approximate and len(notes) == 1
    assert "outgrow the budget" in notes[0] and bounded.choice.report() in notes[0]
    assert "snapkv" not in {one.policy.partition(":")[0] for one, _ in bounded.choice.tried}
    assert not plain.approximate


def test_measures_by_hand():
    exact, other = torch.tensor([[[0.5, 0.5], [0.9, 0.1]]]).log(), torch.tensor([[[0.5, 0.5], [0.2, 0.8]]]).log()
    found = distance([exact], iter([other]), [torch.tensor([[0, 0]])])
    worst = 0.9 * torch.tensor(4.5).log() + 0.1 * torch.tensor(0.125).log()
    assert found.worst == pytest.approx(float(worst)) and found.kl == pytest.approx(float(worst) / 2)
    assert found.same == 0.5 and found.loss == pytest.approx(float(torch.tensor(4.5).log()) / 2)


def test_reading_token_by_token_is_reading_and_greedy_is_generate(lm):
    ids = lm.encode(TEXT)
    scores, size = decoded(lm.model, torch.tensor([ids]), 100, Way(chunk=7))
    torch.testing.assert_close(scores[0], lm.logits(ids)[99:-1].log_softmax(-1), atol=1e-4, rtol=1e-4)
    assert size == FullCache(2).footprint(2, 12, 4).held(len(ids) - 1)
    assert lm.decode(said(lm.model, ids, 8, Way())) == lm.generate(ids, max_tokens=8, beyond=True)
