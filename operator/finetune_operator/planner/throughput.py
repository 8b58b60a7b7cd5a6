"""How fast a GPU trains and answers: published shares of its peak, as a range."""

from __future__ import annotations

from finetune_operator.planner.gpus import (
    GPU,
    MethodType,
    Range,
    decode_seconds_per_block,
    matrix_parameters,
    observed_shares,
    saturation_tokens,
    scaling,
)
from finetune_operator.planner.shape import ModelShape

TRAINING_PASSES = 4
"""2 forward and 2 for the gradient of the inputs, per parameter and token; frozen weights have no gradient."""
RECOMPUTATION_PASSES = 2
UNPACKED_LOSS = 0.8
"""Share of a batch's tokens that are not padding, at worst: rows of like length share a batch (runner, order.py)."""


def training_flops_per_token(shape: ModelShape, mean_length: float, *, checkpointing: bool) -> float:
    """Operations per token: matrix products, and causal attention over half of the row's tokens before it."""
    passes = TRAINING_PASSES + (RECOMPUTATION_PASSES if checkpointing else 0)
    attention = 2 * shape.layers * shape.query_width * mean_length / 2
    return passes * (matrix_parameters(shape) + attention)


def training_tokens_per_second(
    shape: ModelShape,
    gpu: GPU,
    method: MethodType,
    *,
    gpus: int,
    nodes: int,
    micro_batch_tokens: float,
    mean_length: float,
    checkpointing: bool = True,
) -> Range:
    """Tokens per second of all GPUs together, lowest and highest likely."""
    low, high = observed_shares(gpu.name, method)
    filled = min(1.0, micro_batch_tokens / saturation_tokens(method))
    least, most = scaling(nodes, gpus)
    peak = gpu.tflops * 1e12 / training_flops_per_token(shape, mean_length, checkpointing=checkpointing) * gpus
    return peak * low * filled * least * UNPACKED_LOSS, peak * high * filled * most


def decode_step_seconds(shape: ModelShape, gpu: GPU, method: MethodType) -> Range:
    """One token for a whole batch of answers: bound by launches per block, or by reading the weights once."""
    low, high = decode_seconds_per_block(method)
    reading = 2.0 * matrix_parameters(shape) / (gpu.bandwidth_gb_s * 1e9) if method == "lora" else 0.0
    return max(low * shape.layers, reading), max(high * shape.layers, 1.7 * reading)
