"""What a strategy shares out between GPUs, and what it adds to each."""

from __future__ import annotations

from typing import Literal

from finetune_operator.planner.memory.weights import BYTES_PER_PARAMETER, Quantisation
from finetune_operator.planner.shape import ModelShape

Strategy = Literal["single", "ddp", "zero2", "zero3", "fsdp"]

COMMUNICATOR_BYTES = 500_000_000
"""NCCL's buffers of one communicator; a rule of thumb, not measured."""
ZERO2_BUCKET_BYTES = 2 * 500_000_000
"""DeepSpeed's reduce bucket: 5e8 elements in 16 bit (its default)."""
ZERO3_LIVE_BYTES = 2 * 1_000_000_000
"""DeepSpeed's stage3_max_live_parameters: 1e9 elements in 16 bit (its default)."""
GATHERED_BLOCKS = 2
"""FSDP holds the block it computes and the one it prefetches."""


def shards(strategy: Strategy, gpus: int) -> tuple[int, int, int]:
    """Into how many parts weights, gradients and optimiser states are cut."""
    if strategy in ("zero3", "fsdp"):
        return gpus, gpus, gpus
    return (1, gpus, gpus) if strategy == "zero2" else (1, 1, 1)


def communication_bytes(
    shape: ModelShape, strategy: Strategy, quantisation: Quantisation, gradient_bytes: float
) -> float:
    """Buffers of the strategy on each GPU: DDP's buckets are a copy of the gradients."""
    if strategy == "single":
        return 0.0
    if strategy == "ddp":
        return gradient_bytes + COMMUNICATOR_BYTES
    if strategy == "zero2":
        return ZERO2_BUCKET_BYTES + COMMUNICATOR_BYTES
    if strategy == "zero3":
        return ZERO3_LIVE_BYTES
    block = shape.block_parameters * BYTES_PER_PARAMETER[quantisation]
    # The root unit holds embedding and head; it is gathered for the whole step.
    return GATHERED_BLOCKS * block + 2.0 * shape.embedding_parameters


def keeps_residual_in_fp32(strategy: Strategy) -> bool:
    """Whether mixed precision of the strategy leaves the residual stream in fp32 (see activations.py)."""
    return strategy in ("zero3", "fsdp")
