"""How many rows may share a forward so that no bit of a row depends on the other rows."""

import torch
from torch import nn

from handscroll.kernels.native import calls
from handscroll.models.model import Model
from handscroll.nn.adapted import Update
from handscroll.nn.quantised import Quantised

# A vectorised loop of torch takes two vectors at a time (AVX-512: 64 numbers in bfloat16, 32 in float32, 16 in
# float64) and what is left one by one, with another exponential; from this many numbers on it is shared among threads.
LOOP, WIDE_LOOP, ALONE = 64, 16, 1 << 15


@torch.no_grad()
def rows_together(model: Model) -> int:
    """Rows of one token that give the same bits in one forward as each alone; 1 where that cannot be promised.

    Products: ours sum every row in the same order (`kernels/native/products.cpp`), those of a BLAS do not. Element by
    element: exponentials, sines and cosines of a row must fill whole vectors, and no loop may be shared among threads.
    """
    probe = torch.empty(1, dtype=model.dtype)
    if model.device.type != "cpu" or model.dtype not in (torch.float32, torch.bfloat16):
        return 1
    if any(isinstance(module, Update) for module in model.modules()):
        return 1  # updates of low rank are products of a BLAS
    rounded = [m for m in model.modules() if isinstance(m, Quantised)]
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear)] + ([] if rounded else [model.head])
    refused = [calls.refuses_product(probe.expand(1, w.shape[1]), w) for w in weights]
    refused += [calls.refuses_raw(probe.expand(1, m.inner), m.format.number, m.raw, m.inner) for m in rounded]
    layers = model.spec.layers
    widest = max(*(w.shape[1] for w in weights), *(m.inner for m in rounded), *(layer.mlp_width for layer in layers))
    whole = all(layer.mlp_width % LOOP == 0 and layer.rotated // 2 % WIDE_LOOP == 0 for layer in layers)
    few = min(calls.FEW, *(calls.alike(m.format.number) for m in rounded), (ALONE - 1) // widest)
    return max(1, few) if whole and not any(refused) else 1
