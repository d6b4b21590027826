"""Bytes of number formats that several tests share."""

import numpy as np
import torch

from handscroll.kernels.formats import FORMATS

HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108]}


HALVES |= {"Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}  # where the float16 scales of a block lie


def random_raw(name: str, rows: int, size: int, seed: int = 0) -> torch.Tensor:
    """Any bytes, but for scales, which are small finite numbers of either sign."""
    one, random = FORMATS[name], np.random.default_rng(seed)
    if name in ("F32", "F16", "BF16", "int8"):
        return one.quantise(torch.from_numpy(random.normal(size=(rows, size)).astype(np.float32)))
    raw = random.integers(0, 256, (rows, size // one.block, one.block_bytes), dtype=np.uint8)
    if name == "FP8":
        raw[raw & 127 == 127] = 0  # not a number
        raw[:, :, :4] = random.normal(scale=0.01, size=(*raw.shape[:2], 1)).astype(np.float32).view(np.uint8)
        return torch.from_numpy(raw.reshape(rows, -1))
    for at in HALVES[name]:
        scales = random.normal(scale=0.01, size=(*raw.shape[:2], 1)).astype(np.float16)
        raw[:, :, at : at + 2] = scales.view(np.uint8)
    return torch.from_numpy(raw.reshape(rows, -1))
