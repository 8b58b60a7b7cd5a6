"""Optimiser steps, evaluation interval and the split of the global batch. Pure arithmetic."""

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
    eval_every: int


def plan_steps(training: Training, examples: int) -> Steps:
    """Steps for `examples` per epoch. Raises PlanError when there is nothing to learn from."""
    if examples < 1:
        raise PlanError("data.train: no rows are left to train on; see status.findings")
    per_epoch = math.ceil(examples / training.global_batch_size)
    total = max(1, round(training.epochs * per_epoch))
    if training.max_steps is not None:
        total = min(total, training.max_steps)
    eval_every = training.eval_steps if isinstance(training.eval_steps, int) else max(1, min(50, per_epoch // 4))
    return Steps(per_epoch=per_epoch, total=total, eval_every=min(eval_every, total))


def split_batch(global_batch_size: int, processes: int, largest_micro_batch: int) -> tuple[int, int]:
    """(micro-batch, accumulation) per process, whose product over all processes is exactly the global batch.

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
    micro = max(m for m in range(1, per_process + 1) if per_process % m == 0 and m <= max(1, largest_micro_batch))
    return micro, per_process // micro


def packs(training: Training, steps: Steps, gpus: int) -> bool:
    """Whether examples share rows: only on request, or from 100 steps on a GPU."""
    if training.packing == "auto":
        return gpus > 0 and steps.total >= PACKING_MINIMUM_STEPS
    return training.packing == "enabled"
