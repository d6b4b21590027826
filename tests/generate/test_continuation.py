"""`LM.continuations`, `LM.beams`, `LM.draft` and what the command writes of them."""

import copy
import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from typer.testing import CliRunner

import handscroll
from handscroll.base.errors import ConfigError
from handscroll.cache.reading.reading import Reading
from handscroll.cache.reading.store import Store
from handscroll.cli.main import app
from handscroll.generate.constrain import Constraint
from handscroll.generate.draft import Lookup
from handscroll.text.training import TokenizerConfig, train_tokenizer
from tests.cli.material import run

PROMPT = "def read(self, size):\n    return "
SAMPLED = {"max_tokens": 12, "temperature": 0.9, "seed": 3}


@pytest.fixture(scope="module")
def lm(tiny_folder):
    return handscroll.load(tiny_folder)


def test_the_first_sample_is_what_generate_gives(lm):
    found = lm.continuations(PROMPT, 3, **SAMPLED)
    assert found[0].text == lm.generate(PROMPT, **SAMPLED) == lm.continuations(PROMPT, **SAMPLED)[0].text
    assert len({item.text for item in found}) == 3
    assert all(item.finish in ("length", "eos") and not item.scored for item in found)


def test_texts_are_their_tokens_and_end_before_stop_strings(lm):
    for item in lm.continuations(PROMPT, 4, stop=["e"], **SAMPLED):
        assert "e" not in item.text
        whole = lm.decode(lm.encode(PROMPT) + list(item.tokens))[len(PROMPT) :]
        assert whole.startswith(item.text) and (item.finish == "stop") == ("e" in whole)


def test_an_end_token_that_writes_a_text_is_in_no_text(lm):
    """Not even in that of beams, where the token is no special one."""
    first = lm.continuations(PROMPT, max_tokens=1)[0]
    assert first.text
    other = copy.copy(lm)
    other.model = copy.copy(lm.model)
    other.model.config = lm.model.config.model_copy(update={"eos": first.tokens})
    assert other.generate(PROMPT, max_tokens=5) == ""
    found = other.beams(PROMPT, 4, 4, max_tokens=5)
    ended = [one for one in found if one.finish == "eos"]
    assert ended and all(one.text == lm.decode(one.tokens[:-1]) for one in ended)


def test_a_store_a_draft_and_log_probabilities_together(lm, tmp_path):
    store = Store(tmp_path)
    lm.read(PROMPT[:20], store, room=20)
    want = lm.continuations(PROMPT, max_tokens=12, logprobs=2)[0]
    got = lm.continuations(PROMPT, max_tokens=12, logprobs=2, store=store, draft=Lookup(1))[0]
    assert got.tokens == want.tokens and len(got.scored) == 12
    for a, b in zip(got.scored, want.scored, strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4) and a.top[0][0] == b.top[0][0]
    three = [item.tokens for item in lm.continuations(PROMPT, 3, store=store, **SAMPLED)]
    assert three == [item.tokens for item in lm.continuations(PROMPT, 3, **SAMPLED)]
    ids = lm.encode(PROMPT)
    nll = lm.nll(ids + list(want.tokens))[len(ids) - 1 :]
    assert [-item.logprob for item in want.scored] == pytest.approx(nll.tolist(), abs=1e-4)


def test_the_command_says_that_an_answer_of_beams_was_cut(tiny_folder, tmp_path):
    """As it says of an answer in one way."""
    shutil.copytree(tiny_folder, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    words = ["generate", str(tmp_path / "model"), "--prompt", PROMPT, "--chat", "--max-tokens", "3", "--plain"]
    said = lambda *more: CliRunner().invoke(app, [*words, *more]).stderr  # noqa: E731
    assert "[cut after 3 tokens" in said() and "[cut after 3 tokens" in said("--beams", "2")
    assert "[cut" not in said("--beams", "2", "--samples", "2")  # each says (length) for itself


def test_beams_have_text_and_score(lm):
    found = lm.beams(PROMPT, 3, max_tokens=8, count=2)
    ids = lm.encode(PROMPT)
    for item in found:
        nll = lm.nll(ids + list(item.tokens))[len(ids) - 1 :]
        assert item.score == pytest.approx(-float(nll.sum()) / len(item.tokens), abs=1e-4)
        assert item.text == lm.decode(ids + list(item.tokens))[len(PROMPT) :]
    assert found[0].score > found[1].score


def test_a_draft_of_another_tokenizer_is_refused(lm):
    words = "".join(chr(97 + n % 26) * (n % 7 + 1) + " " for n in range(2000))
    other = train_tokenizer([words, "def return self" * 50], TokenizerConfig(vocab=270))
    with pytest.raises(ConfigError, match="vocabulary"):
        lm.draft(handscroll.lm.LM(lm.model, other, "other"))
    assert lm.generate(PROMPT, max_tokens=8, draft=lm.draft(lm)) == lm.generate(PROMPT, max_tokens=8)


def test_the_command_writes_json(tiny_folder, lm):
    words = ["generate", tiny_folder, "--prompt", PROMPT, "--max-tokens", "6"]
    plain = run(*words)
    told = json.loads(run(*words, "--json", "--logprobs", "2", "--lookup", "1"))
    (one,) = told["continuations"]
    assert one["text"] + "\n" == plain == run(*words, "--lookup", "1")
    assert told["prompt_tokens"] == len(lm.encode(PROMPT)) and told["settings"]["max_tokens"] == 6
    assert one["tokens"] == [entry["id"] for entry in one["logprobs"]] and one["finish"] == "length"
    assert all(len(entry["top"]) == 2 and entry["logprob"] <= 0 for entry in one["logprobs"])
    assert all(math.isclose(entry["logprob"], entry["top"][0]["logprob"]) for entry in one["logprobs"])  # greedy
    assert set(told["draft"]) == {"forwards", "drafted", "accepted", "rate"}
    several = json.loads(run(*words, "--samples", "3", "--temperature", "1", "--seed", "2", "--json"))
    assert len(several["continuations"]) == 3 and several["settings"]["seed"] == 2
    assert "logprobs" not in several["continuations"][0]
    best = json.loads(run(*words, "--beams", "3", "--samples", "2", "--length-penalty", "0.5", "--json"))
    assert best["settings"] == {"max_tokens": 6, "beams": 3, "length_penalty": 0.5, "dtype": "float32"}
    assert [item["score"] for item in best["continuations"]] == sorted(
        (item["score"] for item in best["continuations"]), reverse=True
    )


def test_the_command_writes_text(tiny_folder, tmp_path):
    words = ["generate", tiny_folder, "--prompt", PROMPT, "--max-tokens", "40", "--temperature", "1", "--beyond"]
    assert run(*words, "--choice", "yes", "--choice", "no") in ("yes\n", "no\n")
    assert int(run(*words, "--regex", "[1-9][0-9]{2}")) in range(100, 1000)
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 2}))
    assert set(json.loads(run(*words, "--json-schema", schema))) <= {1, 2}
    assert run(*words, "--choice", "a", "--samples", "2").startswith("--- 1 of 2 (complete)\na\n--- 2 of 2")
    assert run("generate", tiny_folder, "--prompt", PROMPT, "--max-tokens", "5", "--draft", tiny_folder) == run(
        "generate", tiny_folder, "--prompt", PROMPT, "--max-tokens", "5"
    )


def test_the_command_refuses_what_it_would_ignore(tiny_folder, tmp_path):
    words = ["generate", tiny_folder, "--prompt", PROMPT, "--max-tokens", "5"]
    run(*words, "--logprobs", "1", fails="appear only in the output of --json")
    run(*words, "--length-penalty", "2", fails="belongs to --beams")
    run(*words, "--choice", "a", "--regex", "b", fails="give one of them")
    run(*words, "--lookup", "2", "--draft", tiny_folder, fails="give one of them")
    run(*words, "--beams", "2", "--temperature", "1", "--lookup", "1", fails="goes without temperature, a draft")
    run(*words, "--beams", "2", "--samples", "3", fails="count is 3")
    run(*words, "--json-schema", tmp_path / "none", fails="cannot be read")
    run(*words, "--choice", "a", "--stop", "b", fails="constraint")
    run(*words, "--samples", "0", fails="samples is 0")
    run(*words, "--lookup", "-1", fails="at least 1")


def test_a_constraint_is_one_for_many_calls(lm):
    constraint = Constraint.choices(["yes", "no"], lm.tokenizer)
    texts = {lm.generate(PROMPT, constraint=constraint, max_tokens=9, temperature=1.0, seed=seed) for seed in range(12)}
    assert texts == {"yes", "no"}
    assert torch.is_grad_enabled()


def test_requests_that_are_prepared_together_get_one_part_of_a_reading(lm, tmp_path, monkeypatch):
    """It is cut once, while no other thread may look."""
    reading, cut, made = lm.read(PROMPT, Store(tmp_path), room=20), Reading._cut, []

    def seen(whole, length):
        made.append((length, whole._lock.locked()))
        return cut(whole, length)

    monkeypatch.setattr(Reading, "_cut", seen)
    with ThreadPoolExecutor(4) as threads:
        found = set(map(id, threads.map(reading.part, [8] * 4)))
    assert made == [(8, True)] and len(found) == 1
