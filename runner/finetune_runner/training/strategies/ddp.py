"""ddp: the whole model in every process; gradients are averaged while the backward pass runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from finetune_api.stages import TrainResult
from finetune_runner.training.launch import launch

if TYPE_CHECKING:
    from finetune_runner.context import StageContext
    from finetune_runner.training.strategies.base import Engine, Setup


def train(context: StageContext) -> TrainResult:
    """Train in one process per GPU."""
    return launch(context)


def engine(setup: Setup) -> Engine:
    """A full replica."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from finetune_runner.training.objectives.base import Batch
    from finetune_runner.training.strategies.base import Engine, InForward

    class Replica(Engine):
        """The whole model in every process."""

        def wrap(self, module: InForward) -> Any:
            # The base is read from the same files and the adapter made from the same seed: nothing to broadcast.
            return DistributedDataParallel(
                module,
                device_ids=[self.setup.device.index] if self.setup.device.type == "cuda" else None,
                init_sync=False,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )

        def backward(self, batch: Batch, scale: float, *, last: bool) -> torch.Tensor:
            # DDP averages; a sum is wanted.
            scale *= self.setup.world.size
            with contextlib.nullcontext() if last else self.module.no_sync():
                return super().backward(batch, scale, last=last) / self.setup.world.size

        def call(self, function: Callable[[Any], Any]) -> Any:
            return function(self.model)

    return Replica(setup)
