"""What a strategy shares out between GPUs, and what it adds to each."""

from __future__ import annotations

from typing import Literal

from finetune_api.stages import Offload
from finetune_operator.planner.memory.weights import Quantisation, block_bytes
from finetune_operator.planner.shape import ModelShape

Strategy = Literal["single", "ddp", "zero2", "zero3", "fsdp", "fsdp2", "fsdpBase"]
"""fsdpBase is the runner's fsdp with qlora: FSDP1 over the frozen base, the adapter whole in every process."""

DDP_OUTSIDE_BYTES = 1_000_000_000
"""NCCL's buffers of one communicator: the upper end of a rule of thumb (0.5 to 1 GB), not measured."""
SHARDED_OUTSIDE_BYTES = 2_800_000_000
"""NCCL's buffers under FSDP. Fitted: nvidia-smi minus allocated, calibration rows on 2 and 4 GPUs."""
ALONE_OUTSIDE_BYTES = 400_000_000
"""DeepSpeed's process group of a single GPU. Fitted: Qwen's Q-LoRA rows of 1.8B."""
ZERO2_BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's reduce bucket, whole whatever goes through it, in the adapter's precision (its default)."""
ZERO3_LIVE_BYTES = 2 * 1_000_000_000
"""DeepSpeed's stage3_max_live_parameters: 1e9 elements in 16 bit (its default)."""
GATHERED_BLOCKS = 2
"""FSDP holds the block it computes and the one it prefetches."""


def shards(strategy: Strategy, gpus: int) -> tuple[int, int, int]:
    """Into how many parts weights, gradients and optimiser states are cut."""
    if strategy in ("zero3", "fsdp", "fsdp2"):
        return gpus, gpus, gpus
    if strategy == "fsdpBase":
        return gpus, 1, 1
    return (1, gpus, gpus) if strategy == "zero2" else (1, 1, 1)


def gradient_copies(strategy: Strategy) -> int:
    """ZeRO-2 adds a batch's gradients, put together in a tensor of their own, to those of the batches before.

    Read in DeepSpeed 0.19, zero/stage_1_and_2.py: `copy_grads_in_partition`, `all_grad_tensors`. The step makes such a
    tensor once more, when the batch's is gone.
    """
    return 2 if strategy == "zero2" else 1


def state_bytes(strategy: Strategy, adapter_bytes: int) -> int:
    """Bytes of each of AdamW's moments per parameter: DeepSpeed's are those of its fp32 copy."""
    return 4 if strategy in ("zero2", "zero3") else adapter_bytes


def adapter_shards(strategy: Strategy, gpus: int) -> int:
    """Into how many parts the adapter's weights are cut."""
    return 1 if strategy == "fsdpBase" else shards(strategy, gpus)[0]


def master_bytes(parameters: int, strategy: Strategy, gpus: int) -> float:
    """DeepSpeed's own fp32 copy of what is trained, in parts, beside the parameters (zero/stage_1_and_2.py, stage3.py).

    It keeps one whatever the precision of the parameters.
    """
    return 4.0 * parameters / gpus if strategy in ("zero2", "zero3") else 0.0


def offloaded(offload: Offload) -> frozenset[str]:
    """Components that DeepSpeed keeps in host memory instead of the GPU's."""
    if offload == "none":
        return frozenset()
    optimizer = frozenset({"optimiser", "gradients", "masterCopy"})
    return optimizer | {"weights", "adapter"} if offload == "parameters" else optimizer


def communication_bytes(
    shape: ModelShape,
    strategy: Strategy,
    quantisation: Quantisation,
    *,
    gradient_bytes: float,
    bucket_bytes: float,
) -> float:
    """Buffers of the strategy in PyTorch's memory: DDP's buckets are a copy of the gradients."""
    if strategy == "single":
        return 0.0
    if strategy == "ddp":
        return gradient_bytes
    if strategy == "zero2":
        return bucket_bytes
    if strategy == "zero3":
        # Embedding and head are whole while they are used, beyond what is kept. Chosen after Qwen-72B's rows, which
        # were 5 GB too low at 256 tokens: that is what its two tables take.
        # A tensor is whole or not: the experts of a block may be more than what is to be kept at most.
        return max(ZERO3_LIVE_BYTES, 2.0 * shape.block_expert_parameters) + 2.0 * shape.embedding_parameters
    flat_gradients = gradient_bytes if strategy == "fsdpBase" else 0.0
    block = block_bytes(shape, quantisation)
    # The root unit holds embedding and head; it is gathered for the whole step.
    return GATHERED_BLOCKS * block + 2.0 * shape.embedding_parameters + flat_gradients


def outside_bytes(strategy: Strategy, gpus: int) -> float:
    """What the strategy adds outside of PyTorch's memory."""
    if strategy == "single":
        return 0.0
    if strategy == "zero2" and gpus == 1:
        return ALONE_OUTSIDE_BYTES
    return DDP_OUTSIDE_BYTES if strategy in ("ddp", "zero2") else SHARDED_OUTSIDE_BYTES


def keeps_input_gradients(strategy: Strategy, *, reentrant: bool) -> bool:
    """Whether each block's input gradient (2 h T) stays until the backward pass ends.

    FSDP1 hooks the inputs of a unit whose weights are frozen, to know when to free what it gathered, and lets go of
    them at the end of the backward pass. Under reentrant checkpointing around the unit those inputs are leaves that
    hold their gradients. Seen first in fms-acceleration's rows (2 h L T more than on one GPU), then in PyTorch:
    tests/runner/test_input_gradients.py. The runner checkpoints otherwise.
    """
    return strategy == "fsdp" and reentrant
