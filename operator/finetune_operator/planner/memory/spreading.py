"""One copy of a model over several GPUs, as accelerate's "balanced" device map spreads it: at most so much on each.

accelerate fills each GPU but the last up to an equal share of the 16-bit weights and 1.25 blocks more, and keeps the
room of its largest layer on the first (utils/modeling.py, get_balanced_memory and infer_auto_device_map).
tests/runner/test_placement.py compares with the maps it makes.
"""

from __future__ import annotations

import math

from finetune_operator.planner.memory.weights import BYTES_PER_PARAMETER, Quantisation, block_bytes, weight_bytes
from finetune_operator.planner.shape import ModelShape

BUFFER_BLOCKS = 1.25


def _most_16_bit_bytes(shape: ModelShape, gpus: int) -> float:
    table = 2.0 * shape.vocabulary * shape.hidden
    return weight_bytes(shape, "none") / gpus + max(BUFFER_BLOCKS * 2.0 * shape.block_parameters, table)


def spreads(shape: ModelShape, gpus: int) -> bool:
    """Whether accelerate can cut a model into so many parts: it gives no GPU less than the embedding, and blocks."""
    share = weight_bytes(shape, "none") / gpus + BUFFER_BLOCKS * 2.0 * shape.block_parameters
    return gpus == 1 or (gpus <= shape.layers and share >= 2.0 * shape.vocabulary * shape.hidden)


def blocks_on_a_gpu(shape: ModelShape, gpus: int) -> int:
    """Most blocks that one of the GPUs holds."""
    if gpus == 1:
        return shape.layers
    return min(shape.layers, math.ceil(_most_16_bit_bytes(shape, gpus) / (2.0 * shape.block_parameters)))


def spread_weight_bytes(shape: ModelShape, quantisation: Quantisation, gpus: int) -> float:
    """Bytes of weights on the fullest GPU. Whole blocks stay together, and so do embedding and head where they are one.

    Where to cut is decided by the 16-bit sizes, also for a quantised base.
    """
    whole = weight_bytes(shape, quantisation)
    if gpus == 1:
        return whole
    if quantisation in ("none", "fp32"):
        wider = BYTES_PER_PARAMETER[quantisation] / BYTES_PER_PARAMETER["none"]
        return min(whole, wider * _most_16_bit_bytes(shape, gpus))
    blocks = blocks_on_a_gpu(shape, gpus) * block_bytes(shape, quantisation)
    return min(whole, blocks + 2.0 * shape.vocabulary * shape.hidden)
