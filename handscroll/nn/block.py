"""One layer of a transformer, for every family here: attention and an MLP, each added to what came in.

A forward of a whole model, for tokens (B, T), from top to bottom (`models/model.py: Decoder`):

    x = embed(tokens)                                   (B, T, D)
    for block in layers:                                this file
        x = x + attention(norm(x))                      `nn/attention.py`: project, rotate, keep, read, project
        x = x + mlp(norm(x))                            `nn/mlp.py`
    logits = norm(x) @ head.T                           (B, T, V)

Families differ in where they normalise (`Norms`) and in whether a decoder also reads a source (`cross`). Where a place
for a norm is unused, an `nn.Identity` stands there, so that `Block.forward` is one sum for all of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from handscroll.nn.attention import Attention, Context, CrossAttention
from handscroll.nn.compiled.halves import halves
from handscroll.nn.shapes import Embeddings
from handscroll.nn.tile import tiled


@dataclass(frozen=True)
class Norms:
    """Where a block normalises, by norms that `make` makes.

    `before`: what a branch reads (pre-norm: GPT-2, Llama, T5). `branch`: what a branch gives, before it is added
    (besides the former in GLM-4-0414 and Gemma). `sum`: what comes out of the addition (post-norm: BERT).
    """

    make: Callable[[], nn.Module]
    before: bool = True
    branch: bool = False
    sum: bool = False

    def at(self, place: bool) -> nn.Module:
        """The norm of a place; where none belongs, one that changes nothing."""
        return self.make() if place else nn.Identity()


class Block(nn.Module):
    """x + attention(x), then x + mlp(x), with norms before, in and after the branches.

    The decoder of an encoder-decoder reads its source (`cross`) between the two.
    """

    cross: CrossAttention | None

    def __init__(self, attention: Attention, mlp: nn.Module, norms: Norms, cross: CrossAttention | None = None):
        super().__init__()
        self.number = attention.number
        self.attention_norm = norms.at(norms.before)
        self.attention = attention
        self.attention_branch_norm = norms.at(norms.branch)
        self.attention_sum_norm = norms.at(norms.sum)
        self.cross = cross
        self.cross_norm = norms.at(norms.before and cross is not None)
        self.mlp_norm = norms.at(norms.before)
        self.mlp = mlp
        self.mlp_branch_norm = norms.at(norms.branch)
        self.mlp_sum_norm = norms.at(norms.sum)

    def forward(self, x: Embeddings, context: Context) -> Embeddings:
        compiled = self._compiled(x, context)
        if compiled is not None:
            return compiled
        read = self.attention_branch_norm(self.attention(self.attention_norm(x), context))
        x = self.attention_sum_norm(x + context.dropped(read, 2 * self.number + 1))
        if self.cross is not None:
            x = x + context.dropped(self.cross(self.cross_norm(x), context), self.cross.site)
        made = self.mlp_branch_norm(tiled(self.mlp, self.mlp_norm(x), context.mlp_tile))
        return self.mlp_sum_norm(x + context.dropped(made, 2 * self.number + 2))

    def remember(self, x: Embeddings, context: Context) -> Any:
        """Append the keys and values of `x` to the context's cache, and nothing else; what the cache said to that."""
        return self.attention.remember(self.attention_norm(x), context)

    def _compiled(self, x: Embeddings, context: Context) -> Embeddings | None:
        """The same by the compiled halves of the layer around its attention; None where there are none for this."""
        rotation = context.rotation(self.attention.shape.positions)
        if context.noise is not None or context.known is not None or rotation is None:
            return None
        found = halves(self, x, rotation)
        if found is None:
            return None
        q, k, v = found.before(x, rotation)
        spans = context.append(self.number, k, v)
        return found.after(x, self.attention.read(q, spans, context))
