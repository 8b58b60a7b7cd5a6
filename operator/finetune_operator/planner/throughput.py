"""How fast a GPU trains and answers: published shares of its peak, as a range."""

from __future__ import annotations

from typing import Literal

from finetune_operator.planner.flops import matrix_parameters, training_flops_per_token
from finetune_operator.planner.gpus import (
    GPU,
    MethodType,
    Range,
    decode_seconds_per_block,
    dequantisation_seconds_per_parameter,
    launch_seconds_per_block,
    lowest_bandwidth_share,
    observed_shares,
    scaling,
)
from finetune_operator.planner.shape import ModelShape

UNPACKED_LOSS = 0.8
"""Share of a batch's tokens that are not padding, at worst: rows of like length share a batch (runner, order.py)."""

COMPILED_GAIN = 1.15
"""What the fastest likely run gains over the published ones: torch.compile (axolotl: a step takes 14 to 19 % less;
torchtune: 27 % more tokens) or fused kernels (fms-acceleration: 14 %). Chosen after comparing with all speeds."""


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
    quantisation: Literal["nf4", "gptq"] = "nf4",
) -> Range:
    """Tokens per second of all GPUs together, lowest and highest likely.

    A micro-batch takes as long as its operations, and 4-bit weights as long again as to restore them; but never less
    than its kernels take to be started. At worst so few of its tokens pass an expert that its weights are read besides.
    """
    low, high = observed_shares(gpu.name, method)
    least, most = scaling(nodes, gpus)
    operations = training_flops_per_token(shape, mean_length, checkpointing=checkpointing) * micro_batch_tokens
    fast, slow = (operations / (gpu.tflops * 1e12 * share) for share in (high, low))
    if method == "qlora":
        quick, long = dequantisation_seconds_per_parameter(quantisation)
        fast, slow = fast + quick * shape.linear_parameters, slow + long * shape.linear_parameters
    passes = 3 if checkpointing else 2
    slow += passes * 2.0 * shape.expert_parameters / (gpu.bandwidth_gb_s * 1e9 * lowest_bandwidth_share())
    launch = launch_seconds_per_block() * shape.layers
    fast, slow = max(fast, launch), max(slow, launch)
    lowest = micro_batch_tokens / slow * gpus * least * UNPACKED_LOSS
    return lowest, micro_batch_tokens / fast * gpus * most * COMPILED_GAIN


def decode_step_seconds(shape: ModelShape, gpu: GPU, method: MethodType) -> Range:
    """One token for a whole batch of answers: bound by launches per block, or by reading the weights once."""
    low, high = decode_seconds_per_block(method)
    reading = 2.0 * matrix_parameters(shape) / (gpu.bandwidth_gb_s * 1e9) if method == "lora" else 0.0
    return max(low * shape.layers, reading), max(high * shape.layers, 1.7 * reading)
