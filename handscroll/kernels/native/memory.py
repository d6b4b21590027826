"""Whether the memory of a tensor holds its numbers, so that compiled code may read it."""

import torch
from torch import Tensor
from torch._C import _get_tracing_state, _len_torch_dispatch_stack
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.nn import Parameter

FOLLOWED = "torch follows the computation: a trace, a transform of functions, forward gradients, or a dispatch mode"
OTHER_CLASS = "the tensor is of another class than torch.Tensor"
LAZY = "the memory does not hold the numbers: they have the opposite sign, or are zeros without memory"


def refuses_memory(*tensors: Tensor | None) -> str:
    """Why compiled code must not read these tensors' memory, or write an output that torch does not see; or ""."""
    for x in tensors:
        if x is None:
            continue
        if type(x) is not Tensor and type(x) is not Parameter:
            return OTHER_CLASS
        if x.is_neg() or x._is_zerotensor():
            return LAZY
    dual = forward_ad._current_level >= 0
    traced = _get_tracing_state() is not None or torch.compiler.is_compiling()
    moded = _len_torch_dispatch_stack() > 0  # fake tensors, counters of operations
    transformed = peek_interpreter_stack() is not None  # vmap, jvp and the like
    return FOLLOWED if dual or traced or moded or transformed else ""
