"""Cache policies and rounded weights: what they hold, how far they are off, what they refuse."""

import pytest
import torch
from typer.testing import CliRunner

from handscroll.base.errors import ConfigError
from handscroll.cache.full import FullCache
from handscroll.cache.int8 import Int8Cache
from handscroll.cache.reading.store import Store
from handscroll.cli.main import app
from handscroll.lm import load
from tests.generate.material import TEXT, filled, kl
from tests.naming import naming


@pytest.fixture
def lm(tiny_folder):
    return load(tiny_folder)


def test_int8_holds_little_more_than_a_byte_a_number(lm):
    ids = lm.encode(TEXT)
    full, _ = filled(lm, FullCache, ids)
    small, _ = filled(lm, Int8Cache, ids)
    size = lm.model.config.head_size
    assert small.nbytes == full.nbytes * (size + 4) // (4 * size)


def test_int8_is_near_the_exact_cache_and_not_equal(lm):
    ids = lm.encode(TEXT)
    _, exact = filled(lm, FullCache, ids)
    _, rounded = filled(lm, Int8Cache, ids)
    assert 0 < kl(exact, rounded) < 1e-3


def test_int8_does_not_depend_on_the_chunks_of_the_prompt(lm):
    """Tokens are read rounded by the forward that made them, too."""
    ids = lm.encode(TEXT)
    one, a = filled(lm, Int8Cache, ids)
    many, b = filled(lm, Int8Cache, ids, chunk=7)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    same = (one.columns(1)["keys"] == many.columns(1)["keys"]).float().mean()
    assert same > 0.999  # but for numbers that rounding noise pushed over an edge


def test_int8_caches_are_copied_cut_and_kept_like_full_ones(lm):
    ids = lm.encode(TEXT)
    cache, _ = filled(lm, Int8Cache, ids)
    copies = [cache.clone(), cache.take_rows(torch.tensor([0]))]
    new = torch.tensor([[5, 9, 3]])
    want = lm.model(new, cache=cache, length=400)
    for copy in copies:
        torch.testing.assert_close(lm.model(new, cache=copy, length=400), want)
        copy.trim(len(ids))
        assert copy.length == len(ids)
        torch.testing.assert_close(lm.model(new, cache=copy, length=400), want)


def test_an_int8_reading_is_smaller_and_answers_as_an_int8_cache_does(lm, tmp_path):
    ids = lm.encode(TEXT)
    exact, small = Store(tmp_path / "exact"), Store(tmp_path / "small")
    lm.read(ids[:200], small, policy="int8", beyond=True)
    lm.read(ids, small, "code", policy="int8", beyond=True)  # goes on from the first
    lm.read(ids, exact, "code", beyond=True)
    assert small.nbytes < 0.34 * exact.nbytes
    prompt = [*ids, 7]
    want = lm.generate(prompt, max_tokens=20, policy="int8", beyond=True)
    assert lm.generate(prompt, max_tokens=20, policy="int8", store=small, beyond=True) == want
    assert lm.ask("code", "?", small, max_tokens=5, beyond=True)
    assert small.find(lm.identity(400), torch.tensor(ids)) is None  # an exact request does not take it


def test_int8_weights_are_near_and_are_saved(tiny_folder, lm, tmp_path):
    rounded = load(tiny_folder, weights="int8")
    ids = lm.encode(TEXT)[:60]
    exact, got = lm.logits(ids), rounded.logits(ids)
    apart = [kl(a, b) for a, b in zip(exact, got, strict=True)]
    assert 0 < sum(apart) / len(apart) < 2e-3
    torch.testing.assert_close(rounded.nll(ids), lm.nll(ids), rtol=0.05, atol=0.05)
    few = rounded.model(torch.tensor([ids[:3]]))  # few rows: the compiled product
    torch.testing.assert_close(few[0], got[:3], rtol=1e-4, atol=1e-4)
    before = sum(p.numel() * p.element_size() for p in lm.model.parameters())
    tensors = {t.data_ptr(): t for t in (*rounded.model.parameters(), *rounded.model.buffers())}
    assert sum(t.numel() * t.element_size() for t in tensors.values()) < 0.32 * before
    rounded.save(tmp_path / "out")
    assert torch.equal(load(tmp_path / "out").logits(ids), got)


def test_unknown_names_are_refused(lm, tiny_folder):
    with pytest.raises(ConfigError, match=naming("'int9'", "'int8'")):
        lm.generate("import", policy="int9", max_tokens=1)
    with pytest.raises(ConfigError, match="'int9'"):
        load(tiny_folder, weights="int9")


@pytest.mark.parametrize("policy", ["h2o:budget=64,budget=4096", "offload:recent=32,block=32,recent=32"])
def test_an_option_that_is_given_twice_is_refused(lm, policy):
    name = "budget" if "budget" in policy else "recent"
    with pytest.raises(ConfigError, match=naming(policy, f"'{name}'", "once")):
        lm.generate("import", policy=policy, max_tokens=1)


def test_the_command_says_what_is_approximate(tiny_folder):
    command = ["generate", str(tiny_folder), "--prompt", "import", "--max-tokens", "5"]
    exact = CliRunner().invoke(app, command)
    rounded = CliRunner().invoke(app, [*command, "--cache", "int8", "--weights", "int8"])
    assert exact.exit_code == rounded.exit_code == 0
    assert "approximate" not in exact.stderr
    assert "approximate: --cache int8 (" in rounded.stderr and "approximate: --weights int8 (" in rounded.stderr
