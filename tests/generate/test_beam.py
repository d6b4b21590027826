"""Beam search against every sequence there is, and against the reference library."""

import itertools
import math

import pytest
import torch

from handscroll.base.errors import CapacityError, ConfigError, DataError
from handscroll.cache.full import FullCache
from handscroll.generate import beam
from handscroll.generate.draft import Lookup
from handscroll.generate.request import Request
from handscroll.generate.sample import Sampling
from handscroll.models.weights import load_model
from tests.conformance.families import reference, save
from tests.generate.asking import beam_search, decode
from tests.generate.material import loaded, prompts_of, tiny
from tests.naming import naming

EOS = 3


@torch.no_grad()
def every_continuation(model, prompt, new, penalty):
    """Tokens -> score of all continuations that end with EOS or have `new` tokens, by whole forwards in float64."""
    found = {}
    for tokens in itertools.product(range(model.config.vocab), repeat=new):
        scores = model(torch.tensor([[*prompt, *tokens]]))[0].log_softmax(-1)[len(prompt) - 1 : -1]
        cut = tokens.index(EOS) + 1 if EOS in tokens else new
        total = sum(float(scores[place, token]) for place, token in enumerate(tokens[:cut]))
        found[tokens[:cut]] = total / cut**penalty
    return found


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("seed", range(4))
def test_beams_enough_for_all_find_the_best_of_all(penalty, seed):
    model, prompt, new = tiny(seed), [1, 2, 0], 4
    every = sorted(every_continuation(model, prompt, new, penalty).items(), key=lambda item: -item[1])
    found = beam_search(model, prompt, 256, new, (EOS,), count=5, penalty=penalty, early="never")
    assert [item.tokens for item in found] == [tokens for tokens, _ in every[:5]]
    for item, (tokens, score) in zip(found, every, strict=False):
        assert item.score == pytest.approx(score, abs=1e-5)
        assert item.finish == ("eos" if tokens[-1] == EOS else "length")


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gpt2"])
@pytest.mark.parametrize("penalty", [0.0, 1.0, -0.5, 2.5])
@pytest.mark.parametrize("early", ["bound", "enough", "never"])
def test_equal_to_the_reference_library(family, penalty, early, tmp_path):
    theirs = reference(family)
    model = load_model(save(theirs, tmp_path))
    ended = 0
    for beams, prompt in zip((2, 4, 5), prompts_of((5, 30, 1)), strict=True):
        free = beam_search(model, prompt, beams, 14, (), beams)
        ends = sorted({free[0].tokens[6], free[-1].tokens[3], free[1].tokens[9]})  # ends that beams come across
        tokens = torch.tensor([prompt])
        made = theirs.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            num_beams=beams,
            num_return_sequences=beams,
            do_sample=False,
            max_new_tokens=14,
            length_penalty=penalty,
            early_stopping={"bound": False, "enough": True, "never": "never"}[early],
            eos_token_id=list(ends),
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )
        found = beam_search(model, prompt, beams, 14, ends, beams, penalty, early)
        for item, row, score in zip(found, made.sequences, made.sequences_scores, strict=True):
            want = row[len(prompt) :].tolist()
            assert list(item.tokens) == want[: len(item.tokens)] and set(want[len(item.tokens) :]) <= {0, ends[0]}
            assert item.score == pytest.approx(float(score), abs=2e-4)
            ended += item.finish == "eos"
    assert ended


@pytest.mark.parametrize("scaling", ["none", "dynamic"])
def test_one_beam_is_greedy_decoding(scaling, tmp_path):
    model = loaded(tmp_path, "llama", scaling)
    for prompt in prompts_of((5, 50)):
        (found,) = beam_search(model, prompt, 1, 20, beyond=True)
        steps = decode(model, [prompt], Sampling(max_tokens=20), beyond=True)
        assert list(found.tokens) == [step[0].token for step in steps]


def test_the_prompt_is_kept_once_and_only_new_tokens_change_places(tmp_path, monkeypatch):
    model = loaded(tmp_path)
    copied, real = [], FullCache.take_rows

    def noting(self, rows):
        copied.append((self.marks.length, self.past[0][0].keys.data_ptr(), self.nbytes))
        return real(self, rows)

    monkeypatch.setattr(FullCache, "take_rows", noting)
    beam_search(model, prompts_of((40,))[0], 4, 12)
    assert copied and max(length for length, _, _ in copied) <= 12
    assert len({place for _, place, _ in copied}) == 1
    assert max(size for _, _, size in copied) <= 2 * 3 * 2 * 2 * 8 * 4 * 4 * 12  # twice the new tokens of four beams


def test_a_saved_beginning_is_used(tmp_path, tiny_folder):
    import handscroll
    from handscroll.cache.reading.store import Store

    lm = handscroll.load(tiny_folder)
    ids = lm.encode("def read(self, size=-1):\n    return")
    reading = lm.read(ids[:-1], Store(tmp_path), room=20)
    want = beam_search(lm.model, ids, 3, 8, count=3)
    without = beam_search(lm.model, ids[-1:], 3, 8, count=3)  # what is read matters
    found = beam_search(lm.model, ids, 3, 8, count=3, reading=reading)
    assert [item.tokens for item in found] == [item.tokens for item in want]
    assert [item.score for item in found] == pytest.approx([item.score for item in want], abs=1e-5)
    assert all(abs(item.score - other.score) > 1e-3 for item, other in zip(found, without, strict=True))
    with pytest.raises(DataError, match="reading"):
        beam_search(lm.model, ids[1:], 3, 8, reading=reading)


def test_refusals(tmp_path):
    model = loaded(tmp_path)
    for wrong, words in (({"beams": 0}, "beams"), ({"count": 3}, "count"), ({"count": 0}, "samples")):
        with pytest.raises(ConfigError, match=words):
            beam_search(model, [5], **({"beams": 2, "max_tokens": 4} | wrong))
    for unasked in ({"draft": Lookup(2)}, {"policy": "int8"}, {"logprobs": 1}, {"sampling": Sampling(seed=3)}):
        with pytest.raises(ConfigError, match="likeliest"):
            beam.beam_search(model, Request([5], **unasked))
    with pytest.raises(ConfigError, match="'soon'"):
        beam_search(model, [5], 2, 4, early="soon")
    with pytest.raises(ConfigError, match=naming("length_penalty", "nan")):
        beam_search(model, [5], 2, 4, penalty=math.nan)
    with pytest.raises(CapacityError, match=r"\b64\b"):
        beam_search(model, [5], 2, 64)
