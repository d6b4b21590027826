"""The feed-forward blocks: gated (Llama form), plain (GPT-2, BERT), and a mixture of gated ones (Mixtral)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handscroll.base.spec import LayerSpec
from handscroll.kernels.native import tables
from handscroll.kernels.rows import GATE, GATES, gelu_tanh
from handscroll.nn.addresses import Addresses, Unfit
from handscroll.nn.linear import Linear
from handscroll.nn.shapes import Embeddings


class GatedMLP(nn.Module):
    """down(silu(gate x) * up x), or another `activation` (Shazeer 2020, "GLU Variants Improve Transformer")."""

    def __init__(self, width: int, hidden: int, bias: bool, activation: Callable[[Tensor], Tensor] = F.silu):
        super().__init__()
        self.activation = activation
        self.gate = Linear(width, hidden, bias=bias)
        self.up = Linear(width, hidden, bias=bias)
        self.down = Linear(hidden, width, bias=bias)

    def forward(self, x: Embeddings) -> Embeddings:
        return self.down(GATE(self.gate(x), self.up(x), self.activation))

    def table(self, addresses: Addresses, dtype: torch.dtype) -> tuple[int, list[tables.Product]]:
        """How compiled layers in `dtype` compute it: the number of the activation; the products gate, up and down."""
        if self.activation not in GATES:
            raise Unfit("the gate's activation is not compiled")
        parts = [addresses.table(self, name, dtype) for name in ("gate", "up", "down")]
        return GATES.index(self.activation), parts


ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "gelu-tanh": gelu_tanh, "relu": F.relu}


class MLP(nn.Module):
    """down(gelu(up x)) with the tanh form of GELU as in GPT-2, or another `activation`."""

    def __init__(self, width: int, hidden: int, bias: bool = True, activation: Callable[[Tensor], Tensor] = gelu_tanh):
        super().__init__()
        self.activation = activation
        self.up = Linear(width, hidden, bias=bias)
        self.down = Linear(hidden, width, bias=bias)

    def forward(self, x: Embeddings) -> Embeddings:
        return self.down(self.activation(self.up(x)))


def mlp_of(layer: LayerSpec) -> GatedMLP | MLP:
    """The MLP that the spec of a layer describes, or the one beside its experts."""
    kind = GatedMLP if layer.gated else MLP
    return kind(layer.width, layer.mlp_width, layer.mlp_bias, ACTIVATIONS[layer.activation])


class Experts(nn.Module):
    """A mixture of experts: every token is read by the `chosen` gated MLPs that a router finds likeliest for it.

    Their outputs are weighed by the router's probabilities, which with `normed` are divided by their sum (Shazeer et
    al. 2017, arXiv:1701.06538; Jiang et al. 2024, "Mixtral of Experts", arXiv:2401.04088).
    Limits: training adds no loss that would balance the experts, as the released models' own code adds none by default.
    """

    recordable = False  # the chosen experts are looked up on the host, which a recorded graph would not do again

    def __init__(self, width: int, hidden: int, experts: int, chosen: int, normed: bool = True):
        super().__init__()
        self.chosen, self.normed = chosen, normed
        self.router = Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(GatedMLP(width, hidden, bias=False) for _ in range(experts))

    def forward(self, x: Embeddings) -> Embeddings:
        rows = x.flatten(0, -2)
        weights, picked = self.route(rows)
        order = picked.flatten().argsort(stable=True)  # token by token within each expert
        sizes = picked.flatten().bincount(minlength=len(self.experts)).tolist()
        out = torch.zeros_like(rows)
        for expert, at in zip(self.experts, order.split(sizes), strict=True):
            # In training an expert that nobody chose gets a gradient of zero: all ranks then have the same gradients.
            if len(at) or torch.is_grad_enabled():
                tokens = at // self.chosen
                made = expert(rows[None, tokens])[0] * weights.flatten()[at, None]
                out = out.index_add(0, tokens, made.to(out.dtype))
        return out.view_as(x)

    def route(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The weights and the numbers of the experts that are chosen for each of N tokens: (N, chosen) both."""
        scores = self.router(rows)
        odds = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        weights, picked = odds.topk(self.chosen, dim=-1)
        return weights / weights.sum(dim=-1, keepdim=True) if self.normed else weights, picked
