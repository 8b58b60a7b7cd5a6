"""What PyTorch's allocator keeps for one stream or moment and cannot give to another: for published rows only.

Segments belong to the stream they were made for, and those that cannot grow serve only what fits into one. The runner's
may grow, and before memory is refused the allocator gives back what it only keeps.
"""

from __future__ import annotations

from dataclasses import replace

from finetune_operator.planner.memory.adapter import adapter_parameters
from finetune_operator.planner.memory.breakdown import Breakdown
from finetune_operator.planner.memory.loading import loading_memory
from finetune_operator.planner.memory.training import TrainingSetup, training_memory
from finetune_operator.planner.memory.weights import block_bytes

BLOCKS_IN_FLIGHT = 3
"""The block that is computed, and the two gathers that FSDP lets wait beside it (`_FreeEventQueue` in PyTorch)."""


def other_memory(setup: TrainingSetup) -> Breakdown:
    """Peak of a step under a trainer whose segments cannot grow."""
    step = training_memory(setup)
    kept = step.fragmentation_bytes + setup.waiting_blocks * block_bytes(setup.shape, setup.quantisation)
    if setup.separate_pools and setup.strategy == "fsdp":
        gathered = _gathered_bytes(setup)
        kept += gathered - step.allocated["communication"]
        kept = max(kept, loading_memory(setup).reserved_bytes + gathered - step.allocated_bytes)
    elif setup.separate_pools:
        kept = max(kept, _flat_gradient_bytes(setup))
    return replace(step, stranded_bytes=kept)


def _gathered_bytes(setup: TrainingSetup) -> float:
    """Reserved by the streams that gather: what wrapping or the default stream has left over is not theirs.

    The root's part stays whole for the step. Where parameters have a precision of their own for computing, a process's
    part is copied in it first, and from host memory before that; without other processes the copy is all there is.
    """
    whole = 2.0 * setup.shape.embedding_parameters
    whole += BLOCKS_IN_FLIGHT * block_bytes(setup.shape, setup.quantisation)
    copies = 2 if setup.offload == "parameters" else 1
    return whole * (1 + copies / setup.gpus) if setup.gpus > 1 else whole


def _flat_gradient_bytes(setup: TrainingSetup) -> float:
    """ZeRO-2's gradients in one fp32 tensor while the optimiser steps, unless a segment that is free then holds it.

    Free then are the logits' and the reduce buckets', of which there are two.
    """
    shape = setup.shape
    flat = 4.0 * adapter_parameters(shape, setup.rank, shape.targets(setup.target_modules), dora=setup.dora)
    logits = 2.0 * setup.tokens * shape.vocabulary
    bucket = setup.bucket_elements * setup.adapter_bytes / 2
    return flat if flat > max(logits, bucket) else 0.0
