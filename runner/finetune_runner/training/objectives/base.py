"""What an objective is: it owns the examples, turns some of them into a batch, and a batch into a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from finetune_runner.training.distributed import World

if TYPE_CHECKING:
    import torch

Batch = dict[str, "torch.Tensor"]
"""Tensors on the CPU, or after the move on the device; what they are is between `collate` and `loss`."""


@dataclass(frozen=True)
class Sums:
    """Sums over validation rows. They are added up over the ranks and divided by the count."""

    loss: float
    count: float
    measures: Mapping[str, float] = field(default_factory=dict)
    """By name, for example rewardAccuracy."""


@dataclass(frozen=True)
class Start:
    """What is known of the model when an attempt begins."""

    untouched: bool
    """Whether its adapter is still the one that training starts from: no checkpoint was restored."""
    fresh: bool
    """Whether that one is new, so that the model without adapter is the same: no warm start."""


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

    def prepare(self, model: Any, world: World, on_batch: Callable[[int], None], start: Start) -> None:
        """Once, before the first step of an attempt: what has to be known of the model that training starts from."""
        ...

    def begin_step(self, model: Any, indices: Sequence[int], world: World) -> None:
        """Before the micro-batches of an optimiser step; `indices` are its examples on all ranks."""
        ...

    def validation(self, model: Any, world: World, on_batch: Callable[[int], None]) -> Sums:
        """Sums over this rank's share of the validation rows; the model is in eval mode.

        Every rank makes the same number of forward passes: a sharded model needs all of them for each.
        """
        ...
