"""FSDP2 for a decoder: the layers and all other modules are sharded over all ranks. Gradients are sums, not means."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from handscroll.models.model import Decoder, Model
from handscroll.train.parallel.world import World, whole


def shard(model: Decoder, world: World) -> None:
    """Shard the parameters in place. Each layer is gathered while it runs.

    `remember`, `made`, `embed` and `ready` gather parameters as a forward does. Losses are divided by the global count
    before the backward, so gradients are summed over ranks without another division.
    """
    mesh = init_device_mesh(model.device.type, (world.size,))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
        for method in ("remember",) if model.spec.recurrent else ("remember", "made"):
            register_fsdp_forward_method(layer, method)
    fully_shard(model, mesh=mesh)
    for method in ("embed", "ready"):
        register_fsdp_forward_method(model, method)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            if model.device.type == "cpu":
                module.set_force_sum_reduction_for_comms(True)


def gathered(named: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """Gather whole tensors on the first rank, in host memory, one at a time. Other ranks get an empty dictionary.

    Tensors that are not sharded stay where they are and are not copied. Every rank must call it with the same names.
    """
    held: dict[str, Tensor] = {}
    for name, tensor in named.items():
        full = whole(tensor.detach())
        if world.first:
            held[name] = full.cpu() if hasattr(tensor, "full_tensor") else full
    return held


def reshard(model: Model) -> None:
    """Drop the gathered parameters that a forward without a backward leaves behind (FSDP2 keeps those of the root).

    Until then the root's parameters are plain tensors, and the next forward uses them as they are.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def unsharded(model: Decoder, world: World, prepare: Callable[[Decoder], object]) -> Decoder:
    """The model itself if it is not sharded, otherwise a whole copy. The copy has weights on the first rank only.

    `prepare` adds to a new model of the family the modules that were added to this one (LoRA).
    """
    if not isinstance(model, FSDPModule):
        return model
    # FSDP2 replaces the class of a module by a subclass. The family's own class comes after it in the method order.
    kind = type(model).__mro__[2]
    with torch.device("meta"):
        fresh = kind(model.config)
        prepare(fresh)
    reshard(model)
    held = gathered(dict(model.named_parameters()), world)
    if world.first:
        fresh.load_state_dict(held, strict=False, assign=True)
    return fresh.eval()


@torch.no_grad()
def assign(parameter: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into a parameter, which may be sharded."""
    parameter.copy_(like(parameter, value))


def like(pattern: Tensor, value: Tensor) -> Tensor:
    """Shard a whole tensor in the same way as `pattern`."""
    if isinstance(pattern, DTensor) and not isinstance(value, DTensor):
        return distribute_tensor(value.to(pattern.device), pattern.device_mesh, pattern.placements)
    return value
