"""What an objective is: it owns the examples, turns some of them into a batch, and a batch into a loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from finetune_runner.training.distributed import World

if TYPE_CHECKING:
    import torch

Batch = dict[str, "torch.Tensor"]
"""Tensors on the CPU, or after the move on the device; what they are is between `collate` and `loss`."""


class Objective(Protocol):
    """One way to learn from rows.

    The loop divides the losses of an optimiser step by the counts of all its examples on all ranks, so that neither
    micro-batch, accumulation nor the number of processes changes the gradient.
    """

    lengths: Sequence[int]
    """Tokens of each training example: examples of similar length share a micro-batch."""
    counts: Sequence[int]
    """What each training example adds to the denominator of the loss: sft counts labelled tokens."""

    def collate(self, indices: Sequence[int], *, packed: bool) -> Batch:
        """A micro-batch of these training examples; `packed` = one row without padding. No random numbers."""
        ...

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """The summed loss of a micro-batch (a scalar, differentiable). Runs inside the strategy's wrapped forward."""
        ...

    def validation(self, model: Any, world: World, on_batch: Callable[[int], None]) -> tuple[float, float]:
        """This rank's (summed loss, count) over its share of the validation rows; the model is in eval mode.

        Every rank makes the same number of forward passes: a sharded model needs all of them for each.
        """
        ...
