"""Optimiser steps and the split of the global batch. Pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

from finetune_api.job.training import Training

PACKING_MINIMUM_STEPS = 100
"""Below this packing would leave too few optimiser steps to learn from (notes: 27 steps per epoch became 2)."""


class PlanError(ValueError):
    """The spec cannot be planned; the message names field and fix."""


@dataclass(frozen=True)
class Steps:
    """How long training is."""

    per_epoch: int
    total: int
    extend_to: int | None = None
    """Steps that training may go on to while its validation loss falls."""


def plan_steps(training: Training, epochs: float, examples: int) -> Steps:
    """Steps for `epochs` of `examples` each: as many as see every example that often, the last one filled up.

    Epochs follow each other without a gap, so that a step may end one and begin the next: a set smaller than a batch,
    or a little larger than one, is not seen more often than was asked for.

    Raises PlanError when there is nothing to learn from.
    """
    if examples < 1:
        raise PlanError("data.train: no rows are left to train on; see status.findings")
    per_epoch = math.ceil(examples / training.global_batch_size)
    passes = total = max(1, math.ceil(round(epochs * examples / training.global_batch_size, 6)))
    extend_to = None
    if training.max_steps is not None:
        total = min(passes, training.max_steps)
        if training.extend_to is not None and passes > total:
            extend_to = min(passes, training.extend_to)
    return Steps(per_epoch=per_epoch, total=total, extend_to=extend_to)


def split_batch(
    global_batch_size: int, processes: int, largest_micro_batch: int, asked: int | None = None
) -> tuple[int, int]:
    """(micro-batch, accumulation) per process, whose product over all processes is exactly the global batch.

    `asked` is training.microBatchSize; it is kept or refused, never changed.

    Raises PlanError when the global batch cannot be shared evenly.
    """
    if global_batch_size % processes:
        lower = max(processes, global_batch_size // processes * processes)
        upper = (global_batch_size // processes + 1) * processes
        choices = f"{lower} or {upper}" if lower != upper else f"{upper}"
        raise PlanError(
            f"training.globalBatchSize: {global_batch_size} cannot be shared evenly by {processes} GPUs; use {choices}"
        )
    per_process = global_batch_size // processes
    if asked is not None:
        if per_process % asked:
            divisors = [str(m) for m in range(1, per_process + 1) if per_process % m == 0]
            raise PlanError(
                f"training.microBatchSize: {asked} does not divide the {per_process} examples of each of {processes} "
                f"processes; use {' or '.join(divisors[-4:])}"
            )
        return asked, per_process // asked
    micro = max(m for m in range(1, per_process + 1) if per_process % m == 0 and m <= max(1, largest_micro_batch))
    return micro, per_process // micro


def packs(training: Training, steps: Steps, gpus: int, *, packable: bool = True) -> bool:
    """Whether examples share rows: only on request, or from 100 steps on a GPU. dpo and kto are not `packable`."""
    if not packable:
        return False
    if training.packing == "auto":
        return gpus > 0 and steps.total >= PACKING_MINIMUM_STEPS
    return training.packing == "enabled"
