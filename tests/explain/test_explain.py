"""Why an answer: masses and hidden passages against the reference library, and a sentence that an answer needs."""

import json
import shutil
from itertools import pairwise

import pytest
import torch
from typer.testing import CliRunner

import handscroll
from handscroll.base.errors import ConfigError, DataError
from handscroll.cache.reading.store import Store
from handscroll.cli.main import app
from handscroll.evaluate.haystack import haystack
from handscroll.explain.look import Look, by_passage
from handscroll.explain.passages import passages
from handscroll.explain.why import FELT, Explaining, explain, read_before
from handscroll.generate.ask import Question
from handscroll.generate.request import Request
from handscroll.models.weights import load_model
from handscroll.nn.marks import Marks
from tests.conformance.families import reference, save
from tests.conftest import ROOT

STARTER = ROOT / "handscroll" / "starter"
FACT = "The secret number of walnut is 59148.\n"
ASKED = "\nThe secret number of walnut is"


@pytest.fixture(scope="module", params=["llama", "gemma3_text", "mistral"])
def both(request, tmp_path_factory):
    """A small model of ours and the reference library's, with layers that see all or a window."""
    theirs = reference(request.param)
    ours = load_model(save(theirs, tmp_path_factory.mktemp("both") / request.param), dtype=torch.float32)
    theirs.set_attn_implementation("eager")
    return ours, theirs.float().eval()


def looked(model, ids, answer, before):
    """A look at an answer over a reading of the first tokens."""
    cache = model.new_cache(before)
    tokens = torch.tensor([ids[:before]])
    model.hidden(model.embed(tokens, Marks.run(0, before)), Marks.run(0, before), model.mask(), cache, len(ids))

    class Reading:
        length = before

        def past(self, device):
            branch = cache.branch()
            return {"past": branch.past, "before": before}

    return Look(model, Request(ids, reading=Reading()), tuple(answer))


def test_masses_are_those_of_the_reference_library(both):
    ours, theirs = both
    ids = torch.randint(3, 97, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    prompt, answer = ids[:34], ids[34:]
    _, found = looked(ours, prompt, answer, 28).watched()
    with torch.no_grad():
        wanted = torch.stack(theirs(torch.tensor([ids[:-1]]), output_attentions=True).attentions)[:, 0]
    wanted = wanted[:, :, len(prompt) - 1 :].mean(dim=2)  # (layers, heads, S): over the queries that predict the answer
    kv = found.shape[1]
    wanted = wanted.unflatten(1, (kv, -1)).mean(dim=2)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    shares = by_passage(found, [(0, 10), (10, 28)])
    assert sum(shares) == pytest.approx(1) and min(shares) > 0


def masks(config, count, before, hidden):
    """The reference library's masks: no token from `before` on sees the hidden places."""
    places = torch.arange(count)
    seen = places <= places[:, None]
    for first, last in hidden:
        seen[before:, first:last] = False
    window = getattr(config, "sliding_window", None) or count
    near = seen & (places[:, None] - places < window)
    full, windowed = (torch.where(one, 0.0, torch.finfo(torch.float32).min)[None, None] for one in (seen, near))
    if len(set(getattr(config, "layer_types", None) or [])) > 1:
        return {"full_attention": full, "sliding_attention": windowed}
    return windowed


@pytest.mark.parametrize("hidden", [[], [(3, 9)], [(0, 4), (20, 28)], [(25, 28)]])
def test_hidden_keys_are_hidden_from_question_and_answer_only(both, hidden):
    ours, theirs = both
    ids = torch.randint(3, 97, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    prompt, answer, before = ids[:34], ids[34:], 28
    look = looked(ours, prompt, answer, before)
    with torch.no_grad():
        logits = theirs(torch.tensor([ids[:-1]]), attention_mask=masks(theirs.config, 39, before, hidden)).logits
    wanted = logits[0, len(prompt) - 1 :].log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]
    torch.testing.assert_close(look.likelihood(hidden), wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(look.likelihood(hidden), look.likelihood()) == (not hidden)


@pytest.fixture(scope="module")
def starter():
    return handscroll.load(STARTER)


@pytest.fixture(scope="module")
def text(starter):
    filler = starter.decode(haystack(starter.tokenizer, None, 400)[:360])
    lines = filler.splitlines(keepends=True)
    return "".join([*lines[: len(lines) // 3], FACT, *lines[len(lines) // 3 :]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("readings")


@pytest.fixture(scope="module")
def store(starter, text, folder):
    kept = Store(folder)
    starter.read(text, kept, "code", room=64)
    return kept


def test_the_sentence_that_an_answer_needs_is_marked(starter, text, store):
    how = Explaining(passage=32, tried=5, max_tokens=8)
    made = explain(starter, Question("code", ASKED, "{question}"), store, how=how)
    assert made.answer.strip().startswith("59148") and made.finish == "length"
    assert "".join(one.text for one in made.marks) == text
    assert made.causes and "59148" in made.causes[0].text and made.causes[0].effect > 2
    assert made.rests > 2 and made.together > 2 and -1 <= made.agreement <= 1
    assert sum(one.effect is not None for one in made.marks) == 5
    assert sum(one.attention for one in made.marks) == pytest.approx(1)
    assert (
        sum(one.marked for one in made.marks)
        == len(made.causes)
        == sum((one.effect or 0) >= FELT for one in made.marks)
    )
    assert made.read == store.named("code")[1] and made.looked < 12 * 60
    assert "".join(step.text for step in made.steps) == made.answer
    assert all(len(step.others) == 3 for step in made.steps)


def test_a_given_answer_is_explained_and_nothing_is_marked_without_a_cause(starter, store):
    how = Explaining(passage=32, tried=0, alternatives=0, max_tokens=10**9)  # which only the model's own answer needs
    made = explain(starter, Question("code", ASKED, "{question}"), store, " 77", how)
    assert (
        made.finish == "" and made.answer == " 77" and not made.causes and made.together == 0 and made.agreement is None
    )
    assert made.likelihood < -2 and json.dumps(made.record())


def test_the_answer_is_the_one_that_ask_gives(starter, store, folder, monkeypatch, tmp_path):
    """Under the checkpoint's repetition penalty, unless it is to be left out."""
    copied = shutil.copytree(STARTER, tmp_path / "starter")
    (copied / "generation_config.json").write_text('{"repetition_penalty": 5.0}', encoding="utf-8")
    lm = handscroll.load(copied)
    how, question = Explaining(passage=32, tried=0, max_tokens=8), Question("code", ASKED, "{question}")
    answers = []
    for plain in (False, True):
        asked = lm.ask("code", ASKED, store, "{question}", max_tokens=8, temperature=0.0, plain=plain)
        answers.append(explain(lm, question, store, how=how, plain=plain).answer)
        assert answers[-1] == asked
    assert answers[0] != answers[1]
    where = ["--store", str(folder), "--template", "{question}", "--max-tokens", "8", "--model", str(copied)]
    shown = CliRunner().invoke(app, ["explain", "code", ASKED, *where])
    assert answers[0].strip() in shown.stdout and "repetition_penalty 5.0" in shown.stderr
    shown = CliRunner().invoke(app, ["explain", "code", ASKED, "--plain", *where])
    assert answers[1].strip() in shown.stdout and "recommends" not in shown.stderr


def test_passages_hold_every_token_once(starter, text):
    ids = [1, 2, 3, *starter.encode(text, special=False), 4]
    found = passages(starter.tokenizer, ids, text, 16)
    assert [one.start for one in found] == [0, *(one.end for one in found[:-1])] and found[-1].end == len(text)
    assert found[0].first == 3 and found[-1].last == len(ids) - 1
    assert all(one.last == other.first for one, other in pairwise(found))
    with pytest.raises(DataError, match="does not stand among the tokens"):
        passages(starter.tokenizer, ids[60:], text, 16)


def test_what_is_read_with_the_question_belongs_to_the_last_passage(starter, text):
    ids = starter.encode(text, special=False)
    found = passages(starter.tokenizer, ids, text, 16)
    for length in (len(ids), len(ids) - 1, found[-1].first, found[1].first + 1):
        kept = read_before(found, length)
        assert kept[-1].end == len(text) and kept[-1].last == min(length, len(ids)) and kept[0] == found[0]
    with pytest.raises(ConfigError, match="nothing of the document was read"):
        read_before(found, 0)


def test_the_command(store, folder, tmp_path):
    where = ["--store", str(folder), "--template", "{question}"]
    shown = CliRunner().invoke(app, ["explain", "code", ASKED, "--passage", "32", "--max-tokens", "8", *where])
    assert shown.exit_code == 0, shown.output
    assert "59148" in shown.output and "fewer without the text" in shown.output
    shown = CliRunner().invoke(app, ["explain", "code", ASKED, "--max-tokens", "4", "--report", str(tmp_path), *where])
    page = (tmp_path / "explanation.html").read_text(encoding="utf-8")
    assert "explanation.html" in shown.output and "59148" in page and "Only the first 4 tokens" in page
    assert "[cut after 4 tokens" in shown.stderr
    shown = CliRunner().invoke(app, ["explain", "code", ASKED, "--json", "--max-tokens", "4", *where])
    assert "[cut after 4 tokens" in shown.stderr and json.loads(shown.stdout)["finish"] == "length"
    shown = CliRunner().invoke(app, ["explain", "code", ASKED, "--answer", " 77", *where])
    assert shown.exit_code == 0 and "[cut" not in shown.output


def test_an_approximate_reading_is_announced(starter, text, store, folder):
    starter.read(text, Store(folder), "rounded", room=64, policy="int8")
    where = ["--answer", " 59148", "--tried", "0", "--store", str(folder)]
    for name, said in (("rounded", True), ("code", False)):
        shown = CliRunner().invoke(app, ["explain", name, ASKED, *where])
        assert shown.exit_code == 0 and ("approximate" in shown.stderr) == said, shown.output


def test_what_cannot_be_explained(tiny_folder, store, tmp_path):
    lm = handscroll.load(tiny_folder)
    with pytest.raises(ConfigError, match="another"):
        explain(lm, Question("code", ASKED), store)
    with pytest.raises(ConfigError, match="passage"):
        Explaining.parse({"passage": 3}, "explain")
