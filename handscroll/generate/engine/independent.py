"""How many rows may share a forward without one bit of a row depending on the others."""

import torch
from torch import nn

from handscroll.kernels.native import calls
from handscroll.models.model import Model
from handscroll.nn.quantised import Rounded

# A vectorised loop of torch takes two vectors at a time (AVX-512: 64 numbers in bfloat16, 32 in float32, 16 in
# float64) and what is left one by one, with another exponential; from this many numbers on it is shared among threads.
LOOP, WIDE_LOOP, ALONE = 64, 16, 1 << 15


@torch.no_grad()
def rows_together(model: Model) -> int:
    """Rows of one token that give the same bits in one forward as each alone; 1 where that cannot be promised.

    Products: ours sum every row in the same order (`kernels/native/products.cpp`), those of a BLAS do not. Element by
    element: exponentials, sines and cosines of a row must fill whole vectors, and no loop may be shared among threads.
    """
    config, probe = model.config, torch.empty(1, dtype=model.dtype)
    if model.device.type != "cpu" or model.dtype not in (torch.float32, torch.bfloat16):
        return 1
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear)] + [model.head]
    rounded = [m for m in model.modules() if isinstance(m, Rounded)]
    if rounded:  # then there is no other weight
        inner = [m.numbers.shape[1] * (2 if m.numbers.dtype == torch.uint8 else 1) for m in rounded]
        probes = [(probe.expand(1, width), m.numbers, m.scales) for width, m in zip(inner, rounded, strict=True)]
        ours = all(not calls.refuses_rounded(*one) for one in probes)
        widest = max(*inner, config.mlp_width)
    else:
        ours = all(not calls.refuses_product(probe.expand(1, w.shape[1]), w) for w in weights)
        widest = max(max(w.shape[1] for w in weights), config.mlp_width)
    whole = config.mlp_width % LOOP == 0 and all(layer.rotated // 2 % WIDE_LOOP == 0 for layer in model.spec.layers)
    return max(1, min(calls.FEW, (ALONE - 1) // widest)) if ours and whole else 1
