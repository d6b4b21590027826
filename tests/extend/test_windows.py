"""Windows whose positions leap: where their tokens stand, and that a candidate meets the far positions."""

import itertools

import pytest
import torch

import handscroll
from handscroll.evaluate.samples import Sample
from handscroll.extend.methods import candidates
from handscroll.extend.trials import Standing, Trial, applied
from handscroll.extend.windows import Window, leaping_size, losses, more_short, short_losses
from handscroll.nn.marks import Marks
from handscroll.nn.positions.candidate import Candidate


@pytest.fixture
def lm(tiny_folder):
    return handscroll.load(tiny_folder)


def sample(size):
    return Sample(torch.randint(3, 500, (size,), generator=torch.Generator().manual_seed(0)).tolist(), "", 0)


def test_the_second_half_leaps_to_the_end_of_the_target():
    window = Window.leaping(sample(128), 64, 512)
    at = window.positions().tolist()
    assert at[:64] == list(range(64)) and at[-1] == 511 and window.near == 64
    assert [at[first] for first in (64, 80, 96, 112)] == [160, 272, 384, 496]
    assert all(b - a == 1 for a, b in itertools.pairwise(at) if a % 16 != 15 or a < 63)
    assert Window.real(sample(128), 64, 512).positions().tolist() == list(range(128))


def test_a_real_window_gives_more_short_texts(lm):
    """What a change costs short text is known from all the short texts of a window, each read as a text of its own."""
    window = Window.real(sample(400), 64, 400)
    assert [one.ids for one in window.others] == [window.ids[64:128], window.ids[128:192]]
    texts = [window.ids[:64], *(one.ids for one in window.others)]
    apart = [lm.nll(list(one)).double() for one in texts]
    torch.testing.assert_close(short_losses(lm, window), torch.cat(apart), atol=1e-5, rtol=0)
    with applied(lm.model, candidates(lm.model, "pi", 400)[0]):
        far, short = losses(lm, window)
        changed = [losses(lm, one)[1] for one in window.others]
    assert len(far) == 400 - 64 and len(short) == 3 * 63
    torch.testing.assert_close(short[63:], torch.cat(changed))
    assert (short[63:] - torch.cat(apart[1:])).abs().max() > 1e-3
    assert not Window.leaping(sample(128), 64, 512).others and not Window.real(sample(128), 128, 256).others
    assert more_short(32768, 40960) == 0 and more_short(512, 4096) == 3 * 512 and more_short(2048, 8192) == 2048


@pytest.mark.parametrize(("trained", "to"), [(512, 4096), (7, 30), (32768, 65536), (1, 9)])
def test_sizes_divide_into_all_parts(trained, to):
    size = leaping_size(trained, to)
    assert size % 8 == 0 and size <= min(2048, 2 * trained, to)


@pytest.mark.parametrize("name", ["yarn", "dynamic-ntk", "self-extend", "dual-chunk"])
def test_losses_are_those_of_a_plain_forward_at_these_positions(lm, name):
    window = Window.leaping(sample(128), 64, 512)
    candidate = candidates(lm.model, name, 512)[0]
    ids, at = torch.tensor(window.ids), window.positions()
    with applied(lm.model, candidate):
        far, short = losses(lm, window)
        marks = Marks.of(torch.arange(128)[None], positions=at[None])
        with torch.no_grad():
            logits = lm.model.logits(
                lm.model.hidden(lm.model.embed(ids[None], marks), marks, lm.model.mask(), length=512)
            )
    want = torch.nn.functional.cross_entropy(logits[0, :-1], ids[1:], reduction="none").double()
    torch.testing.assert_close(far, want[at[1:] >= 64], atol=2e-5, rtol=0)
    torch.testing.assert_close(short, want[:63], atol=2e-5, rtol=0)
    plain = lm.nll(list(window.ids)).double()
    assert (far - plain[63:]).abs().max() > 1e-3, "far positions are not near ones"


def test_only_what_is_scored_needs_logits(lm, monkeypatch):
    """A real window scores its short text and what lies past the trained length, as the whole loss has it."""
    monkeypatch.setattr("handscroll.extend.windows.NEAR", 16)
    window = Window.real(sample(128), 64, 128)
    far, short = losses(lm, window)
    whole = lm.nll(list(window.ids)).double()
    torch.testing.assert_close(far, whole[63:], atol=1e-5, rtol=0)
    torch.testing.assert_close(short, whole[:15], atol=1e-5, rtol=0)


def test_clearly_behind_is_more_than_the_noise_of_pairs():
    def standing(*far, near=(1.0, 1.0)):
        trial = Trial(far, near, sum(far) / len(far), sum(near) / len(near), 1.0, 10, 0.0)
        return Standing(Candidate("x", "", {}), (trial,))

    best = standing(*[2.0, 3.0] * 16)
    assert standing(*[2.1, 3.1] * 16).clearly_behind(best, 0.1)
    assert not standing(*[2.015, 3.015] * 16).clearly_behind(best, 0.1), "within the margin"
    assert not standing(*[2.5, 2.6] * 16).clearly_behind(best, 0.1), "the difference changes from block to block"
    noisy = standing(*[2.0, 3.0] * 16, near=(1.0, 1.4))
    assert noisy.score(0.1) > best.score(0.1) + 0.4 and not noisy.clearly_behind(best, 0.1), "short text varies as much"
