"""Weights in a number format: decoding reads fewer bytes and does not widen the weights.

They get no gradient, and hand one on to adapters below them.
"""

from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor, nn

from handscroll.kernels.formats import FORMATS, Format
from handscroll.kernels.native import calls, tables
from handscroll.kernels.rows import NUMBERS, QUANTISED, WIDENED
from handscroll.nn.addresses import Addresses, Unfit, product
from handscroll.nn.finite import finite_weight
from handscroll.nn.linear import TokenTable

# From the names of `weights=` to the format of the projections. The token table and the head are always in int8: in
# four bits they would cause a third to a half of the whole error (docs/log.md).
PROJECTIONS = {"int8": FORMATS["int8"], "int4": FORMATS["Q4_1"]}


class Quantised(nn.Module):
    """A projection whose weights (N, D) stay in the bytes of a number format.

    `raw` uint8 (N, row_bytes) may be a view of a mapped file, of which nothing is copied. `dtype` is the dtype of
    inputs and outputs.
    """

    raw: Tensor
    bias: Tensor | None

    def __init__(self, format: Format, raw: Tensor, bias: Tensor | None = None, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.format, self.dtype = format, dtype
        self.inner = format.row_size(raw.shape[1])
        self.register_buffer("raw", raw)
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype))

    @classmethod
    def of(cls, format: Format, weight: Tensor, bias: Tensor | None = None) -> "Quantised":
        """A projection with weights (N, D) rounded to a format; inputs and outputs have their dtype."""
        return cls(format, format.quantise(weight), bias, weight.dtype)

    @property
    def weight(self) -> Tensor:
        """The weights (N, D) in `dtype`, dequantised again at every call."""
        return NUMBERS(self.format, self.raw, self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x)

    def project(self, x: Tensor) -> Tensor:
        """x (..., D) times the weights (N, D) transposed, plus bias."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if x.requires_grad and torch.is_grad_enabled():  # an adapter is trained over these weights
            return _Through.apply(x, self)
        return QUANTISED(x, self.format, self.raw, self.bias)

    def table(self, addresses: Addresses, dtype: torch.dtype) -> tables.Product:
        """How compiled layers in `dtype` multiply by it."""
        if self.dtype != dtype:
            raise Unfit("a quantised projection is in another dtype than the norms")
        if refused := calls.unread(self.format.number):
            raise Unfit(refused)
        raw, bias = addresses.tensor(self, "raw"), addresses.tensor(self, "bias")
        assert raw is not None
        return product(raw, bias, dtype, self.inner, self.format.number)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Quantised":
        """What `Module.to` and its like do: another dtype is that of inputs and outputs, the bytes stay."""
        super()._apply(fn, recurse)
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.raw.device)).dtype
        return self

    def extra_repr(self) -> str:
        return f"{self.inner}, {self.raw.shape[0]}, format={self.format.name}"


class _Through(torch.autograd.Function):
    """The product, and its gradient for x; the weights are dequantised in parts, and nothing of them is kept."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: Quantised) -> Tensor:
        ctx.layer = layer
        return QUANTISED(x.detach(), layer.format, layer.raw, layer.bias)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        format, raw = ctx.layer.format, ctx.layer.raw
        step = max(1, WIDENED // ctx.layer.inner)
        wide = torch.promote_types(grad.dtype, torch.float32)
        out = grad.new_zeros(*grad.shape[:-1], ctx.layer.inner, dtype=wide)
        for part, rows in zip(grad.split(step, -1), raw.split(step), strict=True):
            out += part @ NUMBERS(format, rows, grad.dtype)
        return out.to(grad.dtype), None


class QuantisedTable(Quantised):
    """A token table in a number format; a lookup dequantises only its rows, and `project` is the tied head."""

    def forward(self, tokens: Tensor) -> Tensor:
        return NUMBERS(self.format, self.raw[tokens], self.dtype)


def quantised(model: nn.Module) -> bool:
    """Whether a model has weights in a number format."""
    return any(isinstance(module, Quantised) for module in model.modules())


def kept_bytes(model: nn.Module) -> int:
    """Bytes of the weights that are not trained, in the formats in which they lie."""
    tensors = chain((p for p in model.parameters() if not p.requires_grad), model.buffers())
    return sum(tensor.nbytes for tensor in tensors)


def keep(model: nn.Module, name: str, format: Format, raw: Tensor, dtype: torch.dtype) -> bool:
    """Let the owner of weight `name` compute with the bytes of a format; false if only its numbers can be used."""
    path, _, part = name.rpartition(".")
    owner = model.get_submodule(path)
    if part != "weight" or not isinstance(owner, (nn.Linear, TokenTable)):
        return False
    kind = QuantisedTable if isinstance(owner, TokenTable) else Quantised
    bias = owner.bias if isinstance(owner, nn.Linear) and owner.bias is not None else None
    model.set_submodule(path, kind(format, raw, bias, dtype))
    return True


def round_one(model: nn.Module, name: str, weight: Tensor, weights: str) -> bool:
    """Round the weights (N, D) of one projection or table of a model; false if `name` is another tensor, or `weights`
    is "".

    `weights` is a name of `PROJECTIONS`.

    Raises:
        ConfigError: a width is not a multiple of 32 (int4).
        CheckpointError: a weight is NaN or infinite: rounded, it would look like any other.
    """
    path, _, part = name.rpartition(".")
    owner = model.get_submodule(path)
    if not weights or part != "weight" or not isinstance(owner, (nn.Linear, TokenTable)):
        return False
    ends = isinstance(owner, TokenTable) or path.rpartition(".")[2] == "projection"
    format = PROJECTIONS["int8" if ends else weights]
    return keep(model, name, format, format.quantise(finite_weight(name, weight)), weight.dtype)


def give(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Give a model without numbers its numbers, including the biases of quantised projections."""
    for name in list(state):
        owner = model.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, Quantised):
            owner.bias = state.pop(name)
    kept = {name: tensor for name, tensor in model.state_dict().items() if tensor.device.type != "meta"}
    model.load_state_dict(state | kept, assign=True)


def quantise(model: nn.Module, weights: str = "int8") -> nn.Module:
    """Round every linear layer and token table of a model, one after the other, in place."""
    for name, parameter in list(model.named_parameters()):
        round_one(model, name, parameter.detach(), weights)
    return model
