"""One layer of a transformer, for every family here: attention and an MLP, each added to its input.

A forward of a whole model, for tokens (B, T), from top to bottom (`models/model.py: Decoder`):

    x = embed(tokens)                                   (B, T, D)
    for block in layers:                                this file
        x = x + attention(norm(x))                      `nn/attention.py`: project, rotate, keep, read, project
        x = x + mlp(norm(x))                            `nn/mlp.py`
    logits = norm(x) @ head.T                           (B, T, V)

`x = block(x)` chooses a kernel (`LAYER`, at the end of this file), and so does the loop over all layers (`LAYERS`). The
last kernel of each is the plain one: read `Block.by_parts` and `_one_by_one`. The others compute the same, faster.

Families differ in where they normalise (`Norms`) and in whether a decoder also reads a source (`cross`). An unused
place for a norm holds an `nn.Identity`, so that `Block.forward` is the same sum for all families.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from handscroll.base.portions import MLP_TILE
from handscroll.kernels.native import tables
from handscroll.kernels.registry import Kernel, Operation, always
from handscroll.nn.addresses import Addresses, Unfit
from handscroll.nn.attention import Attention, Context, CrossAttention
from handscroll.nn.compiled import graph, stack
from handscroll.nn.compiled.layer import Form, compiled, refuses_pass
from handscroll.nn.shapes import Embeddings
from handscroll.nn.tile import tiled


@dataclass(frozen=True)
class Norms:
    """The places where a block normalises; `make` makes the norms.

    `before`: the input of a branch (pre-norm: GPT-2, Llama, T5). `branch`: the output of a branch, before it is added
    (GLM-4-0414 and Gemma, besides `before`). `sum`: the result of the addition (post-norm: BERT).
    """

    make: Callable[[], nn.Module]
    before: bool = True
    branch: bool = False
    sum: bool = False

    def at(self, place: bool) -> nn.Module:
        """A norm if `place` is true, else a module that changes nothing."""
        return self.make() if place else nn.Identity()


class Block(nn.Module):
    """x + attention(x), then x + mlp(x), with norms before, in and after the branches.

    The decoder of an encoder-decoder reads its source (`cross`) between the two. With `parallel` the MLP reads what the
    attention reads: x + attention(x) + mlp(x) (GPT-NeoX).
    """

    cross: CrossAttention | None

    def __init__(
        self,
        attention: Attention,
        mlp: nn.Module,
        norms: Norms,
        cross: CrossAttention | None = None,
        parallel: bool = False,
    ):
        super().__init__()
        self.parallel = parallel
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
        return LAYER(self, x, context)

    def by_parts(self, x: Embeddings, context: Context) -> Embeddings:
        """The layer, computed part by part."""
        read = self.attention_branch_norm(self.attention(self.attention_norm(x), context))
        before, x = x, self.attention_sum_norm(x + context.dropped(read, 2 * self.number + 1))
        if self.cross is not None:
            x = x + context.dropped(self.cross(self.cross_norm(x), context), self.cross.site)
        tile = context.mlp_tile or (MLP_TILE if x.device.type == "cpu" and not torch.is_grad_enabled() else 0)
        made = self.mlp_branch_norm(tiled(self.mlp, self.mlp_norm(before if self.parallel else x), tile))
        return self.mlp_sum_norm(x + context.dropped(made, 2 * self.number + 2))

    def remember(self, x: Embeddings, context: Context) -> None:
        """Append the keys and values of `x` to the context's cache and compute nothing else."""
        self.attention.remember(self.attention_norm(x), context)

    def made(self, x: Embeddings, context: Context) -> tuple[Tensor, Tensor]:
        """The keys and values of `x`; nothing is appended."""
        return self.attention.made(self.attention_norm(x), context)

    def table(self, addresses: Addresses) -> Form:
        """How compiled code computes the layer.

        Raises:
            Unfit: a part of the layer has no compiled form.
        """
        dtype, about = next(self.parameters()).dtype, self.attention.shape
        if dtype not in (torch.float32, torch.bfloat16) or self.parallel:
            raise Unfit("layers are compiled in float32 and bfloat16, with one branch after the other")
        before, output = addresses.table(self, "attention", dtype)
        names = ("attention_norm", "attention_branch_norm", "mlp_norm", "mlp_branch_norm")
        before.norm, attention_branch, norm, mlp_branch = (addresses.norm(self, name, dtype) for name in names)
        sums = [addresses.module(self, name) for name in ("attention_sum_norm", "mlp_sum_norm", "cross")]
        if not (before.norm.weight and norm.weight) or any(type(x) not in (nn.Identity, type(None)) for x in sums):
            raise Unfit("the layer has no norm before a branch, has a norm after a sum, or reads a source")
        activation, parts = addresses.table(self, "mlp", dtype)
        sizes, norms = (before.kind, before.width, activation), (attention_branch, norm, mlp_branch)
        after = tables.After(*sizes, *norms, output, *parts)
        return Form(before, after, self.attention.scale, about.positions, about.window, about.cap)


def _refuses_compiled(block: Block, x: Embeddings, context: Context) -> str:
    if refused := refuses_pass(x, context):
        return refused
    if context.complete:
        return "the cache already holds all keys"
    return compiled(block).refuses(x, context.rotation(block.attention.shape.positions))


def _compiled(block: Block, x: Embeddings, context: Context) -> Embeddings:
    halves, rotation = vars(block)["_compiled"], context.rotation(block.attention.shape.positions)
    q, k, v = halves.before(x, rotation)
    spans = context.append(block.number, k, v)
    return halves.after(x, block.attention.read(q, spans, context))


def _one_by_one(layers: Sequence[nn.Module], x: Embeddings, context: Context) -> Embeddings:
    for layer in layers:
        x = layer(x, context)
    return x


LAYER = Operation(
    "a layer",
    Kernel("compiled", "a few tokens: two calls and the attention between them", _refuses_compiled, _compiled),
    Kernel("parts", "norms, attention and MLP one after the other, each by its own kernel", always, Block.by_parts),
)
LAYERS = Operation(
    "all layers",
    Kernel("graph", "a new token of every row on a GPU: one recorded graph", graph.refuses, graph.run),
    Kernel("one call", "a few new tokens on a CPU: one compiled call", stack.refuses, stack.run),
    Kernel("one by one", "any number of tokens, any cache; each layer by its own kernel", always, _one_by_one),
)
