"""Forecast of GPU memory of a LoRA or QLoRA training step.

Formula and constants: notes on memory estimation, measured on Llama blocks and checked against published A100 rows
(gradient checkpointing on, dropout 0, fused head). Feed-forward width is taken as 3.5 x hidden size and grouped-query
attention as a quarter of the heads, because the model facts do not carry them.
"""

from __future__ import annotations

from typing import Literal

from finetune_api.stages import ModelFacts

GIB = 1024**3
NF4_DOUBLE_QUANT_BYTES = 4.127 / 8
FEED_FORWARD_RATIO = 3.5
RECOMPUTED_LAYER_FACTOR = 1.58
"""Peak while recomputing one layer, PEFT's default fp32 adapters under autocast."""
FRAGMENTATION = 1.15
CONTEXT_GIB = 1.0


def adapter_parameters(model: ModelFacts, rank: int) -> int:
    """Parameters of an all-linear adapter of that rank."""
    hidden = model.hidden_size
    feed_forward = int(FEED_FORWARD_RATIO * hidden)
    per_layer = 2 * 2 * hidden + 2 * (hidden + hidden // 4) + 3 * (hidden + feed_forward)
    return rank * per_layer * model.layers


def forecast_gpu_memory_gib(
    model: ModelFacts, method: Literal["lora", "qlora"], rank: int, micro_batch: int, max_length: int
) -> float:
    """Peak memory of one GPU in GiB for a full replica (single process or DDP)."""
    hidden, layers = model.hidden_size, model.layers
    embedding = 2 * model.vocabulary * hidden
    linear = max(0, model.parameters - embedding)
    weights = linear * (NF4_DOUBLE_QUANT_BYTES if method == "qlora" else 2) + embedding * 2
    adapter = adapter_parameters(model, rank) * (4 + 4 + 8)
    tokens = micro_batch * max_length
    saved_per_token_and_layer = 24 * hidden + 8 * FEED_FORWARD_RATIO * hidden + 4 * hidden / 4 + 14 * rank
    activations = 2 * hidden * layers * tokens + RECOMPUTED_LAYER_FACTOR * saved_per_token_and_layer * tokens
    dequantised = 2 * FEED_FORWARD_RATIO * hidden * hidden if method == "qlora" else 0
    head = 0.27e9
    return (weights + adapter + activations + dequantised + head) / GIB * FRAGMENTATION + CONTEXT_GIB
