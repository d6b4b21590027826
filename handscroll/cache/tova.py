"""Policy `tova`: the tokens that the last query looked at (token omission via attention).

Score of token s: the attention weight that the last token gives it, averaged over the heads of the layer; the lowest
goes, be it old or new. Source: Oren et al. 2024, "Transformers are multi-state RNNs", arXiv:2401.06104, section 4.
Difference: prompts are read in chunks, and eviction by the last query comes after each chunk, not after each token.
Limits: what no query of the moment looks at is gone, also when a later one would; a second pass over the keys for the
last query of every forward.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from handscroll.cache.evicting import EvictingCache
from handscroll.nn.marks import Marks


@dataclass(eq=False)
class TovaCache(EvictingCache):
    """The tokens with most weight from the row's last query."""

    policy: ClassVar[str] = "tova"
    scored: ClassVar[bool] = True

    def counted(self, marks: Marks, device: torch.device) -> Tensor:
        index = marks.tensors(device)[0]
        return ((index == index.amax(dim=1, keepdim=True)) & (index >= 0)).float()

    def remembered(self, old: Tensor, new: Tensor) -> Tensor:
        return new  # 0 where a row got nothing but padding, which is then all that goes

    def scores(self, index: Tensor, mass: Tensor) -> Tensor:
        return mass.double()
