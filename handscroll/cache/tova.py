"""Policy `tova`: keeps the tokens to which the last query attended (token omission via attention).

The score of token s is the attention weight that the last token gives it, averaged over the heads of the layer; the
lowest is evicted, old or new. Source: Oren et al. 2024, "Transformers are multi-state RNNs", arXiv:2401.06104, section
4. Difference: prompts are read in chunks, and the last query of each chunk evicts, not that of each token.
Limits: a token without attention now is lost, even if a later query would attend to it; every forward needs a second
pass over the keys for its last query.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from handscroll.cache.evicting import EvictingCache
from handscroll.nn.marks import Marks


@dataclass(eq=False)
class TovaCache(EvictingCache):
    """The tokens with the largest weight from the row's last query."""

    policy: ClassVar[str] = "tova"
    scored: ClassVar[bool] = True

    def counted(self, marks: Marks, device: torch.device) -> Tensor:
        index = marks.tensors(device)[0]
        return ((index == index.amax(dim=1, keepdim=True)) & (index >= 0)).float()

    def remembered(self, old: Tensor, new: Tensor) -> Tensor:
        return new  # 0 where a row got only padding; then only padding is evicted

    def scores(self, index: Tensor, mass: Tensor) -> Tensor:
        return mass.double()
