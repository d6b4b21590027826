"""Remembers where the modules and weights of a layer lie, so that compiled layers notice when they change.

A part of a layer that compiled code can replace describes itself: its method `table(addresses)` returns the structure
of `kernels/native/tables.py`, and raises `Unfit` when compiled code has no such form. The method finds its modules and
tensors through `Addresses`, which records each place.
"""

from collections.abc import Iterable
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from handscroll.kernels.native import tables
from handscroll.kernels.native.calls import LANES


class Unfit(Exception):
    """A part of a layer has no compiled form; the message says why."""


class Addresses:
    """Where modules and tensors were found (their holder and their name), and the hooks of those modules.

    The records are kept in columns: every new token checks them for every layer, and reading the weights may just have
    pushed them out of the processor's cache.
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
        """Whether nothing has been replaced or moved since it was recorded."""
        same = all(map(is_, map(dict.get, self._holders, self._names), self._found))
        return same and list(map(Tensor.data_ptr, self._tensors)) == self._pointers

    def hooked(self) -> bool:
        """Whether a module has a forward hook, which only the module's own forward calls."""
        return any(self._hooks)

    def module(self, parent: nn.Module, name: str) -> nn.Module | None:
        module = parent._modules.get(name)
        self._place(parent._modules, name, module)
        if module is not None:
            self._hooks += [module._forward_hooks, module._forward_pre_hooks]
        return module

    def tensor(self, module: nn.Module, name: str) -> Tensor | None:
        """A contiguous parameter or buffer on the CPU; None if the module has none of that name.

        Raises:
            Unfit: the tensor is of another type, lies on another device, or is not contiguous.
        """
        for holder in (module._parameters, module._buffers):
            if name in holder:
                tensor = holder[name]
                self._place(holder, name, tensor)
                if tensor is None:
                    return None
                if type(tensor) not in (Tensor, nn.Parameter) or tensor.device.type != "cpu":
                    raise Unfit("a weight is not on the CPU, or is not a plain tensor")
                if not tensor.is_contiguous():
                    raise Unfit("a weight is not contiguous")
                self._tensors.append(tensor)
                self._pointers.append(tensor.data_ptr())
                return tensor
        return None

    def table(self, parent: nn.Module, name: str, *given: Any) -> Any:
        """The table of a part of `parent`, from the part's own `table` method.

        Raises:
            Unfit: the part has no such method, or its forward is not the one that the method describes.
        """
        module = self.module(parent, name)
        return table(module, self, *given)

    def norm(self, parent: nn.Module, name: str, dtype: torch.dtype) -> tables.Norm:
        """The table of a norm; an empty table if there is no norm or if it is an identity."""
        module = self.module(parent, name)
        return tables.Norm() if module is None or type(module) is nn.Identity else table(module, self, dtype)

    def _place(self, holder: dict[str, Any], name: str, found: Any) -> None:
        self._holders.append(holder)
        self._names.append(name)
        self._found.append(found)


def table(module: nn.Module | None, addresses: Addresses, *given: Any) -> Any:
    """The table from a module's own `table` method; a subclass that overrides `forward` does not inherit the method.

    Raises:
        Unfit: the module has no such method, or its forward is not the one that the method describes.
    """
    for kind in type(module).__mro__:
        if "table" in vars(kind):
            return module.table(addresses, *given)  # type: ignore[union-attr, operator]
        if "forward" in vars(kind):
            break
    raise Unfit(f"{type(module).__name__} has no compiled form")


def whole(name: str, *sizes: int, of: int = LANES) -> None:
    """Check that every size is a multiple of the vector length.

    Raises:
        Unfit: a size is not a multiple of `of`.
    """
    if any(size % of for size in sizes):
        raise Unfit(f"a size of the {name} is no multiple of {of}")


def product(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, inner: int, number: int) -> tables.Product:
    """The table of a matrix (N, `inner`) in the number format `number`; its inputs and outputs are in `dtype`.

    Raises:
        Unfit: the bias is in another dtype, or a size is not a multiple of the vector length.
    """
    if bias is not None and bias.dtype != dtype:
        raise Unfit("a bias is in another dtype than the norms")
    whole("projection", inner, weight.shape[0])
    return tables.Product(number, inner, weight.shape[0], *map(_at, (weight, bias)))


def _at(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
