"""Where a layer's modules and weights lie, and whether they still do: what compiled layers rest on.

A part of a layer that compiled code can stand for describes itself: its method `table(addresses)` gives the structure
of `kernels/native/tables.py` and raises `Unfit` where compiled code has no such form. It finds its modules and tensors
through `Addresses`, which remembers each place.
"""

from collections.abc import Iterable
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from handscroll.kernels.native import tables
from handscroll.kernels.native.calls import LANES


class Unfit(Exception):
    """There is no compiled form of a part of a layer; the message says why."""


class Addresses:
    """Where modules and tensors were found: what held each, by which name; and the hooks of those modules.

    In columns, since a token asks them of every layer, from memory that the weights may just have pushed out of the
    processor's.
    """

    def __init__(self, parts: "Iterable[Addresses]" = ()):
        parts = list(parts)
        self._holders: list[dict[str, Any]] = [x for part in parts for x in part._holders]
        self._names: list[str] = [x for part in parts for x in part._names]
        self._found: list[Any] = [x for part in parts for x in part._found]
        self._tensors: list[Tensor] = [x for part in parts for x in part._tensors]
        self._pointers: list[int] = [x for part in parts for x in part._pointers]
        self._hooks: list[dict[int, Any]] = [x for part in parts for x in part._hooks]

    def fresh(self) -> bool:
        """Whether nothing was replaced or moved since."""
        same = all(map(is_, map(dict.get, self._holders, self._names), self._found))
        return same and list(map(Tensor.data_ptr, self._tensors)) == self._pointers

    def hooked(self) -> bool:
        """Whether a module wants somebody called, which only its own forward does."""
        return any(self._hooks)

    def module(self, parent: nn.Module, name: str) -> nn.Module | None:
        module = parent._modules.get(name)
        self._place(parent._modules, name, module)
        if module is not None:
            self._hooks += [module._forward_hooks, module._forward_pre_hooks]
        return module

    def tensor(self, module: nn.Module, name: str) -> Tensor | None:
        """A parameter or buffer, on the CPU and without gaps; None where the module has none of that name.

        Raises:
            Unfit: it is of another kind, or lies elsewhere.
        """
        for holder in (module._parameters, module._buffers):
            if name in holder:
                tensor = holder[name]
                self._place(holder, name, tensor)
                if tensor is None:
                    return None
                if type(tensor) not in (Tensor, nn.Parameter) or tensor.device.type != "cpu":
                    raise Unfit("a weight is not on the CPU, or is no plain tensor")
                if not tensor.is_contiguous():
                    raise Unfit("a weight lies with gaps")
                self._tensors.append(tensor)
                self._pointers.append(tensor.data_ptr())
                return tensor
        return None

    def table(self, parent: nn.Module, name: str, *given: Any) -> Any:
        """The table of a part of `parent`, by its own description.

        Raises:
            Unfit: it has none, or its forward is another than the one that it describes.
        """
        module = self.module(parent, name)
        return table(module, self, *given)

    def norm(self, parent: nn.Module, name: str, dtype: torch.dtype) -> tables.Norm:
        """The table of a norm; an empty one where there is no norm, or one that changes nothing."""
        module = self.module(parent, name)
        return tables.Norm() if module is None or type(module) is nn.Identity else table(module, self, dtype)

    def _place(self, holder: dict[str, Any], name: str, found: Any) -> None:
        self._holders.append(holder)
        self._names.append(name)
        self._found.append(found)


def table(module: nn.Module | None, addresses: Addresses, *given: Any) -> Any:
    """What a module says of itself; a subclass with another forward does not inherit the description.

    Raises:
        Unfit: it says nothing, or its forward is another than the one that it describes.
    """
    for kind in type(module).__mro__:
        if "table" in vars(kind):
            return module.table(addresses, *given)  # type: ignore[union-attr, operator]
        if "forward" in vars(kind):
            break
    raise Unfit(f"there is no compiled {type(module).__name__}")


def whole(name: str, *sizes: int, of: int = LANES) -> None:
    """
    Raises:
        Unfit: a size is no whole number of vectors.
    """
    if any(size % of for size in sizes):
        raise Unfit(f"a size of the {name} is no multiple of {of}")


def product(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, inner: int, number: int) -> tables.Product:
    """The table of a matrix (N, `inner`) in the number format `number`, whose rows and results are in `dtype`.

    Raises:
        Unfit: the bias is in another dtype, or sizes are no whole vectors.
    """
    if bias is not None and bias.dtype != dtype:
        raise Unfit("a bias is in another dtype than the norms")
    whole("projection", inner, weight.shape[0])
    return tables.Product(number, inner, weight.shape[0], *map(_at, (weight, bias)))


def _at(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
