"""The processes of a run, and the rows and tokens that each of them works on.

torchrun numbers the ranks. `context` neighbouring ranks share the tokens of the same rows (context parallel). Groups of
such ranks share the rows (data parallel). Every rank reads the same stream and takes its part, so a run may resume with
another number of ranks and sees the same rows.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor

from handscroll.base.config import Config
from handscroll.base.errors import ConfigError, DataError, HandscrollError
from handscroll.data.batch import Batch

T = TypeVar("T")
PATIENCE = timedelta(minutes=60)  # timeout of collectives; `watch.py` finds dead ranks much earlier


class Parallel(Config):
    """How the ranks of a run share the work. A single process needs no setting."""

    context: int = Field(default=1, ge=1, description="ranks that share the tokens of a row (context parallel)")
    shard: bool = Field(default=True, description="shard weights, gradients and optimiser over all ranks (FSDP2)")
    compare_every: int = Field(
        default=50, ge=0, description="updates between two comparisons of what every rank has a whole copy of; 0: none"
    )


@dataclass(frozen=True, eq=False)
class World:
    """The place of this process among the ranks of a run. The default is a run with one process."""

    rank: int = 0
    size: int = 1
    context: int = 1
    context_group: Any = None
    compare_every: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes records, checkpoints and messages."""
        return self.rank == 0

    @property
    def data(self) -> int:
        """The number of parts that the rows are divided into."""
        return self.size // self.context

    @property
    def neighbours(self) -> int:
        """The number of ranks on this machine."""
        return 1 if self.size == 1 else int(os.environ.get("LOCAL_WORLD_SIZE", str(self.size)))

    @property
    def place(self) -> int:
        """This rank's place among the ranks that share its tokens."""
        return self.rank % self.context

    def rows(self, batch: Batch) -> tuple[Batch, int]:
        """This rank's rows of a micro-batch, and the number of the first one.

        Raises:
            ConfigError: the rows cannot be shared evenly.
        """
        count = batch.tokens.shape[0]
        if self.data == 1:
            return batch, 0
        if count % self.data:
            raise ConfigError(
                f"{count} rows in a micro-batch cannot be shared by {self.data} data-parallel ranks; "
                f"make stages' rows (and micro) multiples of {self.data}, or raise parallel.context"
            )
        size = count // self.data
        first = self.rank // self.context * size
        return batch.rows(first, first + size), first

    def cut(self, first: int, last: int) -> list[int]:
        """The edges that divide tokens first .. last - 1 among the ranks of a context group, as evenly as possible."""
        count = last - first
        return [first + count * part // self.context for part in range(self.context + 1)]

    def sum(self, values: list[float]) -> list[float]:
        """Sums over all ranks, in float64."""
        if self.size == 1:
            return values
        # The tensor must be on the device that the backend uses (gloo: CPU, nccl: GPU).
        total = torch.tensor(values, dtype=torch.float64, device=_device())
        dist.all_reduce(total)
        return total.tolist()

    def sum_gradients(self, model: torch.nn.Module) -> None:
        """Sum over all ranks the gradients of parameters that are not sharded (FSDP2 has summed the sharded ones)."""
        if self.size == 1:
            return
        for parameter in model.parameters():
            if parameter.requires_grad and not hasattr(parameter, "full_tensor"):
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)

    def agree(self, flag: bool) -> bool:
        """True on every rank if `flag` is true on any rank."""
        return self.sum([float(flag)])[0] > 0

    def of_first(self, make: Callable[[], T]) -> T:
        """What `make` returns on the first rank, which alone calls it. What it raises there is raised on every rank."""
        if self.size == 1:
            return make()
        made: list[Any] = [None, None]
        if self.first:
            try:
                made[0] = make()
            except HandscrollError as error:
                made[1] = error
        dist.broadcast_object_list(made)
        if made[1] is not None:
            raise made[1]
        return made[0]

    def every(self, value: T) -> list[T]:
        """The values of all ranks, in their order."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def close(self) -> None:
        if self.size > 1:
            dist.barrier()
            dist.destroy_process_group()


ALONE = World()


def join_world(settings: Parallel, device: str = "cpu") -> World:
    """The world that torchrun set up, or `ALONE` for a single process. GPUs ("cuda") use NCCL, CPUs use gloo.

    Raises:
        ConfigError: the number of ranks is not a multiple of `context`.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size % settings.context:
        hint = "start the run with torchrun --nproc-per-node N" if size == 1 else "choose a divisor of the ranks"
        raise ConfigError(f"parallel.context = {settings.context} with {size} rank(s): {hint}")
    if size == 1:
        return ALONE
    rank = int(os.environ["RANK"])
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    group = None
    for first in range(0, size, settings.context):
        ranks = list(range(first, first + settings.context))
        made = dist.new_group(ranks, timeout=PATIENCE)  # every rank must take part in the creation of every group
        group = made if rank in ranks else group
    return World(rank, size, settings.context, group, settings.compare_every)


def same_everywhere(world: World, what: str, digest: int) -> None:
    """Refuse to start if ranks disagree, for example because one machine has another recipe, text or checkpoint.

    Raises:
        ConfigError: some ranks differ from the first. The message names them.
    """
    if world.size == 1:
        return
    odd = _differing(world, digest)
    if odd:
        raise ConfigError(f"{what}: ranks {odd} differ from rank 0; give every rank the same files and settings")


def check_copies(world: World, copies: Iterable[Tensor]) -> None:
    """Stop if copies that every rank holds (weights, states of the optimiser) are no longer the same to the bit.

    Sharded tensors have no copy and are passed over. The sum of all words is compared: a flipped bit always changes it.

    Raises:
        DataError: some ranks differ from the first. The message names them.
    """
    digest = 0
    for tensor in copies:
        if not hasattr(tensor, "full_tensor"):
            digest += _sum_of_bits(tensor.detach())
    odd = _differing(world, (digest + 2**63) % 2**64 - 2**63)
    if odd:
        raise DataError(
            f"the weights or the optimiser of ranks {odd} differ from those of rank 0: a bit has flipped in a memory, "
            "or the ranks compute differently (parallel.compare_every = 0 allows that); resume from the last checkpoint"
        )


def _sum_of_bits(tensor: Tensor) -> int:
    flat = tensor.contiguous().reshape(-1)
    words = flat.view(torch.int32 if flat.nbytes % 4 == 0 else torch.uint8)
    return int(words.sum(dtype=torch.int64))


def _differing(world: World, digest: int) -> list[int]:
    """The ranks whose number is not that of the first."""
    mine = torch.tensor([digest], dtype=torch.int64, device=_device())
    every = [torch.empty_like(mine) for _ in range(world.size)]
    dist.all_gather(every, mine)
    return [rank for rank, other in enumerate(every) if int(other) != int(every[0])]


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def whole(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor (every rank must call this). Return any other tensor unchanged."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()
