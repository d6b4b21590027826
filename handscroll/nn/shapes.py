"""One legend of shape letters, and the tensor types built from them.

B batch rows; T query tokens; S key tokens; D width; H heads; K kv heads; E head size; F MLP width; V vocabulary.
q, k, v are (B, heads, T, E) inside kernels and (B, T, D) outside; `nn/attention.py` converts.
A leading `1` means that one row serves the whole batch.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

Tokens = Int[Tensor, "B T"]
Sources = Int[Tensor, "B S"]
Embeddings = Float[Tensor, "B T D"]
Logits = Float[Tensor, "B T V"]
Queries = Float[Tensor, "B H T E"]
Keys = Float[Tensor, "B K S E"]
LogSumExp = Float[Tensor, "B H T"]
Allowed = Bool[Tensor, "_ T S"]
