"""What DoRA adds (Liu et al. 2024), as PEFT 0.21 computes it."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_operator.planner.shape import ModelShape


def dora_parameters(shape: ModelShape, targets: Sequence[str]) -> int:
    """Magnitudes: one per output of each target."""
    return shape.layers * sum(shape.linears[name][1] for name in targets)


def dora_saved_bytes_per_token(shape: ModelShape, targets: Sequence[str]) -> float:
    """Bytes that one block saves per token besides LoRA's: the base's and the adapter's result of each target.

    Measured as saved tensors of Llama blocks in bf16: 12h + 8I + 8kv with all targets, residual of the fit 0.
    """
    return 4.0 * sum(shape.linears[name][1] for name in targets)


def dora_saved_bytes_per_block(shape: ModelShape, rank: int, targets: Sequence[str]) -> float:
    """Bytes that one block saves whatever the tokens: PEFT multiplies A and B by sending a unit matrix through them.

    Measured in the same way: an [in, in] unit matrix and its [in, r] product for each target.
    """
    return sum(2.0 * inside * (inside + rank) for inside, _ in (shape.linears[name] for name in targets))


def dora_moment_bytes(shape: ModelShape) -> float:
    """Bytes while the norm of one layer is taken: the weight in 16 bit, the update, and their sum. Reckoned."""
    return 6.0 * shape.largest_linear
