"""Run by torchrun or by hand with RANK and WORLD_SIZE: one update, whose loss and gradients go to a file."""

import random
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from handscroll.base.errors import DataError
from handscroll.nn.init import initialise
from handscroll.nn.noise import Noise
from handscroll.objectives.causal import Causal
from handscroll.objectives.masked import Masked
from handscroll.train.checkpoint import optimizer_tensors
from handscroll.train.parallel.shard import gathered, shard
from handscroll.train.parallel.world import Parallel, check_copies, join_world
from handscroll.train.step import Step
from handscroll.train.strategies.blocks import DiskBlocks
from handscroll.train.strategies.plain import Plain
from handscroll.train.strategies.staged import Staged
from tests.train.strategies.common import MODELS as DECODERS
from tests.train.strategies.common import batch, bert

STRATEGIES = {
    "plain": Plain(),
    "checkpoint": Plain(recompute=True, mlp_tile=48),
    "chunk-outer": Staged(64),
    "layer-outer": Staged(64, 1),
    "staged": Staged(64, 2, mlp_tile=20),
    "disk": Staged(64, 1, blocks=lambda: DiskBlocks(Path(tempfile.gettempdir()), torch.device("cpu"))),
}
CASES = [  # strategy, context ranks, sharded, kind of rows, model
    ("plain", 1, True, "packed", "llama"),
    ("checkpoint", 1, True, "plain", "gpt2"),
    ("staged", 1, True, "packed", "tied"),
    ("chunk-outer", 1, False, "packed", "llama"),
    ("chunk-outer", 2, True, "plain", "llama"),
    ("chunk-outer", 2, True, "packed", "windows"),
    ("layer-outer", 2, True, "short", "gpt2"),
    ("staged", 2, False, "packed", "lora"),
    ("staged", 2, True, "packed", "lora"),
    ("plain", 1, True, "packed", "bert"),
    ("layer-outer", 2, False, "packed", "bert"),
    ("layer-outer", 1, True, "packed", "bert"),
    ("layer-outer", 2, True, "short", "bert"),
    ("disk", 1, True, "packed", "bert"),  # the last chunk of the first rank is padding
]
MODELS = DECODERS | {"bert": lambda: bert(pooler=False, following=False)}


def objective(name):
    return Masked() if name == "bert" else Causal()


def built(name, dtype):
    torch.manual_seed(0)
    model = MODELS[name]()
    if name != "lora":
        initialise(model, "normal", 4, torch.Generator().manual_seed(0), std=0.1)
    return model.to(dtype)


def flipped(world):
    """How many of single flipped bits, in weights and states of an optimiser on the last rank, were found by all."""
    model = built("llama", torch.float32)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    copies = [*model.parameters(), *optimizer_tensors(optimizer)[0].values()]
    dice, found, alarms = random.Random(4), 0, 0
    for _ in range(50):
        tensor = dice.choice(copies).detach().view(-1).view(torch.int32)
        place, bit = dice.randrange(len(tensor)), dice.randrange(32)
        mask = torch.tensor(-(2**31) if bit == 31 else 1 << bit, dtype=torch.int32)
        for turn in range(2):  # flip, and flip back
            if world.rank == world.size - 1:
                tensor[place] ^= mask
            found += turn == 0 and not same(world, copies)
            alarms += turn == 1 and not same(world, copies)
    return {"flipped": torch.tensor([found, alarms])}


def same(world, copies):
    try:
        check_copies(world, copies)
    except DataError as error:
        assert f"ranks [{world.size - 1}]" in str(error)
        return False
    return True


def main():
    torch.set_num_threads(1)
    found = {}
    for dtype in (torch.float64, torch.float32):
        for strategy, context, sharded, kind, name in CASES:
            world = join_world(Parallel(context=context))
            model = built(name, dtype)
            if sharded:
                shard(model, world)
            noise = Noise(0.1, seed=3, update=4)
            loss = Step(STRATEGIES[strategy], world)(model, [batch(kind), batch("plain")], objective(name), noise=noise)
            grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            case = f"{dtype}|{strategy}|{context}|{sharded}|{kind}|{name}"
            found |= {f"{case}|{n}": t for n, t in gathered(grads, world).items()}
            found[f"{case}|loss"] = loss.total
    found |= flipped(join_world(Parallel()))
    if world.first:
        save_file(found, sys.argv[1])
    world.close()


if __name__ == "__main__":
    main()
