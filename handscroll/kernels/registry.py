"""The registry of kernels: every operation lists its kernels, fastest first; the first that takes the tensors runs.

No other Python code chooses a kernel. A compiled kernel divides its own work further, which is not seen here: products
by the number of rows (`native/products.h`), attention by the rows that read the same keys (`native/decode.cpp`). The
code that chooses also gives the reasons: `Operation.explain` for given arguments, and `recording` for all calls inside
it. A refusal is a sentence from the very test that decides, so the printed reasons are those of the choice.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Kernel:
    """One way to compute an operation: a function over compiled code, or plain torch.

    `refuses(*arguments)` returns the reason why it does not take these arguments, or "" if it takes them; `run` has the
    same arguments. `why` says in a line what it is good for.
    """

    name: str
    why: str
    refuses: Callable[..., str]
    run: Callable[..., Any]

    def takes(self, *given: Any) -> bool:
        """Whether it takes these arguments."""
        return not self.refuses(*given)


@dataclass(frozen=True)
class Choice:
    """The kernel that runs for an operation, and the reason why each faster one does not."""

    operation: str
    kernel: str
    why: str
    refused: tuple[tuple[str, str], ...]


class Operation:
    """An operation with several kernels: a call runs the first of them that takes the arguments.

    The last kernel takes everything (`always`).
    """

    every: ClassVar[list["Operation"]] = []

    def __init__(self, name: str, *kernels: Kernel):
        self.name = name
        self._take(kernels)
        self.every.append(self)

    def _take(self, kernels: tuple[Kernel, ...]) -> None:
        self.kernels = kernels
        self._pairs = tuple((kernel.refuses, kernel.run) for kernel in kernels)

    def kernel(self, name: str) -> Kernel:
        """The kernel of this name (for tests and benchmarks)."""
        return next(kernel for kernel in self.kernels if kernel.name == name)

    def __call__(self, *given: Any) -> Any:
        if _RECORDS:
            kernel, choice = self._chosen(given)
            for record in _RECORDS:
                record[choice] += 1
            return kernel.run(*given)
        for refuses, run in self._pairs:
            if not refuses(*given):
                return run(*given)
        raise AssertionError(f"no kernel of '{self.name}' takes this")

    def explain(self, *given: Any) -> Choice:
        """The kernel that runs with these arguments, and why the faster ones do not."""
        return self._chosen(given)[1]

    def _chosen(self, given: tuple[Any, ...]) -> tuple[Kernel, Choice]:
        refused = []
        for kernel in self.kernels:
            reason = kernel.refuses(*given)
            if not reason:
                return kernel, Choice(self.name, kernel.name, kernel.why, tuple(refused))
            refused.append((kernel.name, reason))
        raise AssertionError(f"no kernel of '{self.name}' takes this: {refused}")


_RECORDS: list[Counter[Choice]] = []


@contextmanager
def recording() -> Iterator[Counter[Choice]]:
    """Count the choices made inside the `with` block, in every thread."""
    made: Counter[Choice] = Counter()
    _RECORDS.append(made)
    try:
        yield made
    finally:
        _RECORDS[:] = [record for record in _RECORDS if record is not made]


def without(operation: Operation, *names: str) -> AbstractContextManager[None]:
    """Leave out kernels inside the `with` block, in every thread, to test or measure the others."""
    return alone(operation, *(kernel for kernel in operation.kernels if kernel.name not in names))


@contextmanager
def alone(operation: Operation, *kernels: Kernel) -> Iterator[None]:
    """Let an operation choose among these kernels alone inside the `with` block, in every thread."""
    before = operation.kernels
    operation._take(kernels)
    try:
        yield
    finally:
        operation._take(before)


def always(*_: Any) -> str:
    """The `refuses` of a kernel that takes everything."""
    return ""
