"""Rotation: angles to a million tokens, relative positions only, norms kept."""

import pytest
import torch

from handscroll.nn.marks import Marks
from handscroll.nn.rope import REFERENCE, rotation
from handscroll.nn.scaling.none import NoScaling
from handscroll.nn.scaling.yarn import YaRN

SCALINGS = [NoScaling(), YaRN(factor=8.0, original=4096)]


def turned(x, start, scaling, dtype=torch.float32):
    table = rotation(Marks.run(start, x.shape[2]), scaling, 10_000.0, x.shape[3], None, x.to(dtype))
    return table.turn(x.to(dtype))


@pytest.mark.promise("R9")
@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: s.name)
@pytest.mark.parametrize("position", [REFERENCE, 131_072, 1_048_576])
def test_far_angles_are_exact(scaling, position):
    """Against Python's own arithmetic on the float64 frequencies, to 1e-6 rad."""
    frequencies = scaling.inverse_frequencies(64, 10_000.0, None)
    x = torch.zeros(1, 1, 1, 64)
    table = rotation(Marks.run(position, 1), scaling, 10_000.0, 64, None, x)
    want = torch.tensor([position * float(f) for f in frequencies], dtype=torch.float64)
    got = torch.atan2(table.sine[0, 0].double(), table.cosine[0, 0].double())
    gap = torch.remainder(got - want + torch.pi, 2 * torch.pi) - torch.pi
    assert gap.abs().max() < 1e-6


def test_near_angles_round_as_the_reference_does():
    frequencies = NoScaling().inverse_frequencies(64, 10_000.0, None)
    x = torch.zeros(1, 1, 1000, 64)
    table = rotation(Marks.run(0, 1000), NoScaling(), 10_000.0, 64, None, x)
    angles = torch.arange(1000).float()[:, None] * frequencies.float()
    torch.testing.assert_close(table.cosine[0], angles.cos(), atol=1e-7, rtol=0)


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: s.name)
def test_scores_depend_on_distance_only_and_norms_stay(scaling):
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 5, 64, generator=generator, dtype=torch.float64)
    near = turned(q, 10, scaling, torch.float64) @ turned(k, 3, scaling, torch.float64).transpose(-1, -2)
    far = turned(q, 3010, scaling, torch.float64) @ turned(k, 3003, scaling, torch.float64).transpose(-1, -2)
    torch.testing.assert_close(near, far, atol=5e-3, rtol=0)  # float32 angles: up to 1e-4 rad in each pair
    torch.testing.assert_close(turned(q, 777, scaling).norm(dim=-1), q.float().norm(dim=-1), atol=1e-5, rtol=1e-6)
