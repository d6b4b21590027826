"""GPUs on paper: memory, peak matrix speed and bandwidth, from the makers' data sheets.

Written from memory of NVIDIA's A100 80GB, H100 SXM5 and H200 data sheets and not checked against them.
Matrix speeds are dense bfloat16 (the sheets' headline numbers are for 2:4 sparsity, twice as much).
"""

from dataclasses import dataclass

from handscroll.base.errors import ConfigError, nearest


@dataclass(frozen=True)
class Card:
    """bytes of memory, bfloat16 operations a second, bytes a second of memory, of NVLink a direction."""

    memory: float
    flops: float
    bandwidth: float
    link: float


CARDS = {
    "a100-80gb": Card(memory=80e9, flops=312e12, bandwidth=2.039e12, link=300e9),
    "h100-80gb": Card(memory=80e9, flops=989e12, bandwidth=3.35e12, link=450e9),
    "h200": Card(memory=141e9, flops=989e12, bandwidth=4.8e12, link=450e9),
}
NETWORK = 50e9  # bytes a second of one GPU's share of a 400 Gbit/s network card, between nodes


def card(name: str) -> Card:
    """The card of that name; others are refused with the nearest."""
    if name not in CARDS:
        raise ConfigError(f"--gpu {name}: {nearest(name, CARDS)}")
    return CARDS[name]
