"""What the processes of one training agree on. With one process nothing is sent."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class World:
    """Place of this process among all."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among the processes of this node, which share its disk."""
    local_size: int = 1

    @classmethod
    def from_environment(cls) -> World:
        """As torchrun says."""
        names = {"rank": "RANK", "size": "WORLD_SIZE", "local_rank": "LOCAL_RANK", "local_size": "LOCAL_WORLD_SIZE"}
        return cls(**{field: int(os.environ[name]) for field, name in names.items() if name in os.environ})

    @property
    def main(self) -> bool:
        """Whether this process commits."""
        return self.rank == 0

    def sum(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Element-wise sum over all processes; every process gets the same numbers."""
        if self.size == 1:
            return list(values)
        import torch
        from torch import distributed

        tensor = torch.tensor(list(values), dtype=torch.float64, device=device)
        distributed.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def from_main(self, value: Any) -> Any:
        """The main process's value, in every process."""
        if self.size == 1:
            return value
        from torch import distributed

        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes by rank, in every process."""
        if self.size == 1:
            return [value]
        from torch import distributed

        box = [None] * self.size
        distributed.all_gather_object(box, value)
        return box

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            from torch import distributed

            distributed.barrier()
