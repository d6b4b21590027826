"""Chunked reading with a cache against one whole forward."""

import pytest
import torch

from handscroll.base.errors import CapacityError, ConfigError
from handscroll.generate.prefill import hidden_chunks, prefill
from handscroll.models.weights import load_model
from handscroll.nn.marks import Marks
from tests.conformance.families import FAMILIES, reference, save
from tests.naming import naming

LENGTH = 100  # past the trained 64, past the windows, not a multiple of any chunk
CASES = [(family, "none") for family in FAMILIES if "encoder" not in family]
CASES += [("llama", scaling) for scaling in ("linear", "dynamic", "yarn", "llama3", "longrope")]
CASES += [("mistral-window", "dynamic"), ("qwen2", "longrope")]


def tokens_of(rows, length, seed=0):
    return torch.randint(3, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def chunked_logits(model, tokens, chunk, length):
    cache = model.new_cache(tokens.shape[1])
    marks = Marks.run(0, tokens.shape[1])
    return torch.cat([model.logits(h) for _, _, h in hidden_chunks(model, tokens, marks, cache, length, chunk)], dim=1)


@pytest.mark.promise("R11")
@pytest.mark.parametrize(("family", "scaling"), CASES)
def test_cached_chunks_equal_one_uncached_forward(family, scaling, tmp_path):
    model = load_model(save(reference(family, scaling), tmp_path), dtype=torch.float64)
    tokens = tokens_of(2, LENGTH)
    with torch.no_grad():
        want = model(tokens, length=LENGTH + 20)
    for chunk in (1, 7, 64, LENGTH, 1024):
        assert (chunked_logits(model, tokens, chunk, LENGTH + 20) - want).abs().max() < 1e-5, chunk


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gpt2"])
def test_cached_chunks_in_float32(family, tmp_path):
    model = load_model(save(reference(family), tmp_path))
    tokens = tokens_of(2, LENGTH)
    with torch.no_grad():
        want = model(tokens)
    for chunk in (1, 7, 64):
        assert (chunked_logits(model, tokens, chunk, LENGTH) - want).abs().max() < 1e-4 * want.abs().max()


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gpt2"])
@pytest.mark.parametrize("chunk", [1, 7, 30, 64])
def test_last_hidden_of_padded_rows_is_that_of_each_alone(family, chunk, tmp_path):
    model = load_model(save(reference(family), tmp_path), dtype=torch.float64)
    lengths = torch.tensor([40, 1, 63, 30])
    tokens = tokens_of(4, 63)
    marks = Marks.rows(torch.zeros_like(lengths), lengths)
    together = prefill(model, tokens, marks, model.new_cache(), None, chunk)
    assert together.shape == (4, 1, 48)
    for row, count in enumerate(lengths.tolist()):
        alone = prefill(model, tokens[row : row + 1, :count], Marks.run(0, count), model.new_cache(), None)
        assert (together[row] - alone[0]).abs().max() < 1e-5


def test_packed_rows_see_their_own_document(tmp_path):
    model = load_model(save(reference("llama"), tmp_path), dtype=torch.float64)
    tokens = tokens_of(1, 30)
    segment = torch.tensor([[0] * 12 + [1] * 18])
    index = torch.arange(30)[None]
    positions = torch.cat([torch.arange(12), torch.arange(18)])[None]
    marks = Marks.of(index, segment, positions)
    last = prefill(model, tokens, marks, model.new_cache(), None, 7)
    alone = prefill(model, tokens[:, 12:], Marks.run(0, 18), model.new_cache(), None)
    assert (last - alone).abs().max() < 1e-5


def test_chunks_are_bounded_cover_the_text_and_carry_no_gradient(tmp_path):
    model = load_model(save(reference("llama"), tmp_path))
    cache = model.new_cache(23)
    seen = []
    for first, last, hidden in hidden_chunks(model, tokens_of(1, 23), Marks.run(0, 23), cache, None, 10):
        assert hidden.shape == (1, last - first, 48)
        assert not hidden.requires_grad
        assert torch.is_grad_enabled()  # the caller's own mode, between chunks
        assert cache.length == last
        seen.append((first, last))
    assert seen == [(0, 10), (10, 20), (20, 23)]


def test_refusals(tmp_path):
    model = load_model(save(reference("gpt2"), tmp_path / "a"))
    with pytest.raises(ConfigError, match=naming("chunk", "0")):
        prefill(model, tokens_of(1, 5), Marks.run(0, 5), model.new_cache(), None, 0)
    with pytest.raises(CapacityError, match=r"\b256\b"):
        prefill(model, tokens_of(1, 257), Marks.run(0, 257), model.new_cache(), None)
    dynamic = load_model(save(reference("llama", "dynamic"), tmp_path / "b"))
    with pytest.raises(ConfigError, match="declare"):
        prefill(dynamic, tokens_of(1, 5), Marks.run(0, 5), dynamic.new_cache(), None)
