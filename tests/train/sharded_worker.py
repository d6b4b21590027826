"""One of two ranks of `test_regularise.py`: the same small model whole and sharded, compared."""

import copy
import json
import math
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from handscroll.train.optim import Optimizer
from handscroll.train.regularise import Regularise, add_penalty
from handscroll.train.spike import culprits


def sharded(model, mesh):
    """A copy of a model with each parameter and gradient split over rows."""
    copied = copy.deepcopy(model)
    for module, original in zip(copied, model, strict=True):
        for name, parameter in original.named_parameters():
            split = nn.Parameter(distribute_tensor(parameter.data, mesh, [Shard(0)]))
            if parameter.grad is not None:
                split.grad = distribute_tensor(parameter.grad, mesh, [Shard(0)])
            module.register_parameter(name, split)
    return copied


def difference(split, whole):
    return float((split.detach().full_tensor() - whole.detach()).abs().max())


def compare(rank):
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    split = sharded(whole, mesh)
    settings = Regularise(l1=0.1, l2=0.2)
    found = {"penalty": [add_penalty(split, settings), add_penalty(whole, settings)]}
    found["gradient"] = max(difference(a.weight.grad, b.weight.grad) for a, b in zip(split, whole, strict=True))
    for parameter in whole.parameters():
        parameter.grad = torch.cos(7 * parameter.detach())
    split = sharded(whole, mesh)
    found["largest"] = [culprits(split), culprits(whole)]
    for model in (split, whole):
        optimizer = Optimizer(name="lamb", lr=0.1, weight_decay=0.1).build(model)["lamb"]
        optimizer.step(), optimizer.step()
    found["lamb"] = max(difference(a, b) for a, b in zip(split.parameters(), whole.parameters(), strict=True))
    if rank == 1:
        with torch.no_grad():
            split[1].weight.to_local()[0, 0] = math.nan
    found["broken"] = culprits(split)
    return found


def main(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    (folder / f"{rank}.json").write_text(json.dumps(compare(rank)))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads have aborted a finished process now and then (torch 2.13)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
