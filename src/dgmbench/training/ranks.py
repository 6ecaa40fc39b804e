"""Which of several processes this one is, however they were started, and how they keep in step."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor

from dgmbench.errors import UserError
from dgmbench.training.companions import ReplicatedStrategy

Part = TypeVar("Part")


@dataclass(frozen=True)
class Ranks:
    """This process's place among ``world`` processes; the first one alone writes files and talks."""

    rank: int = 0
    local_rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in one all-reduce."""
        if self.world == 1 or not tensors:
            return
        flat = torch.cat([t.reshape(-1).float() for t in tensors])
        torch.distributed.all_reduce(flat)
        flat /= self.world
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.reshape(tensor.shape))

    def from_first_(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite each tensor by that of the first process."""
        if self.world > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, src=0)

    def gathered(self, parts: dict[int, Part]) -> list[Part]:
        """All numbered parts that the processes hold, in order; what can be pickled can be a part."""
        if self.world > 1:
            held: list[dict[int, Part]] = [{}] * self.world
            torch.distributed.all_gather_object(held, parts)
            parts = {number: part for each in held for number, part in each.items()}
        return [parts[number] for number in sorted(parts)]

    def leave(self) -> None:
        """End the group of processes, once nothing is on its way between them.

        A process that exits while its group is alive may abort: gloo's threads still hold tensors, and giving those
        back needs the interpreter that is being taken down.
        """
        if self.world > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def find_ranks(devices: int, nodes: int) -> Ranks:
    """The place of this process, from the environment of torchrun, SLURM or Lightning's own launcher.

    Raises:
        UserError: if the number of processes that were started is not ``devices * nodes``.
    """
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

    environment = os.environ
    if "RANK" in environment and "WORLD_SIZE" in environment:
        starter, world = "torchrun", int(environment["WORLD_SIZE"])
        ranks = Ranks(int(environment["RANK"]), int(environment.get("LOCAL_RANK", 0)), world)
    elif SLURMEnvironment.detect():
        starter, world = "SLURM", int(environment["SLURM_NTASKS"])
        ranks = Ranks(int(environment["SLURM_PROCID"]), int(environment["SLURM_LOCALID"]), world)
    else:
        local = int(environment.get("LOCAL_RANK", 0))
        return Ranks(int(environment.get("NODE_RANK", 0)) * devices + local, local, devices * nodes)
    if world != devices * nodes:
        raise UserError(
            f"{starter} has started {world} processes, but hardware.devices={devices} hardware.nodes={nodes} ask for "
            f"{devices * nodes}; make the two agree."
        )
    return ranks


def strategy(ranks: Ranks, accelerator: str) -> Any:
    """The strategy for Lightning's Trainer."""
    if ranks.world == 1:
        return "auto"
    return ReplicatedStrategy(process_group_backend="nccl" if accelerator == "gpu" else "gloo")
