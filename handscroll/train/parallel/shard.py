"""FSDP2 for a decoder: every layer, and the rest, sharded over all ranks; gradients are sums, not means."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from handscroll.models.model import Decoder
from handscroll.train.parallel.world import World, whole


def shard(model: Decoder, world: World) -> None:
    """Shard the parameters in place; each layer is gathered while it runs.

    `remember`, `made`, `embed` and `ready` gather like a forward. Losses are divided by the global count before the
    backward, so gradients are added up over ranks without a further division.
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
    """Whole tensors on the first rank (empty elsewhere), one at a time; every rank must call it with the same names."""
    held: dict[str, Tensor] = {}
    for name, tensor in named.items():
        full = whole(tensor.detach())
        if world.first:
            held[name] = full if full is tensor else full.cpu()
    return held


def unsharded(model: Decoder, world: World, prepare: Callable[[Decoder], object]) -> Decoder:
    """The model itself, or on the first rank a whole copy of a sharded one (on other ranks it has no weights).

    `prepare` gives a fresh model of the family the modules that were added to this one (LoRA).
    """
    if not isinstance(model, FSDPModule):
        return model
    # FSDP2 swaps the class of a module for a subclass; the family's own stands behind it.
    kind = type(model).__mro__[2]
    with torch.device("meta"):
        fresh = kind(model.config)
        prepare(fresh)
    held = gathered(dict(model.named_parameters()), world)
    if world.first:
        fresh.load_state_dict(held, strict=False, assign=True)
    return fresh.eval()


@torch.no_grad()
def assign(parameter: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into a parameter, sharded or not."""
    parameter.copy_(like(parameter, value))


def like(pattern: Tensor, value: Tensor) -> Tensor:
    """A whole tensor cut the way `pattern` is."""
    if isinstance(pattern, DTensor) and not isinstance(value, DTensor):
        return distribute_tensor(value.to(pattern.device), pattern.device_mesh, pattern.placements)
    return value
