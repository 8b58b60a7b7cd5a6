"""Operations of a training step."""

from __future__ import annotations

from finetune_operator.planner.shape import ModelShape

TRAINING_PASSES = 4
"""2 forward and 2 for the gradient of the inputs, per parameter and token; frozen weights have no gradient."""
RECOMPUTATION_PASSES = 2


def matrix_parameters(shape: ModelShape) -> int:
    """Parameters that take part in matrix products: the blocks and the head, not the embedding."""
    return shape.linear_parameters + shape.router_parameters + shape.vocabulary * shape.hidden


def active_matrix_parameters(shape: ModelShape) -> int:
    """Those that take part in the products of one token: of a mixture, the experts that it passes."""
    return shape.active_parameters + shape.vocabulary * shape.hidden


def training_flops_per_token(shape: ModelShape, mean_length: float, *, checkpointing: bool) -> float:
    """Operations per token: matrix products, and causal attention over half of the row's tokens before it."""
    passes = TRAINING_PASSES + (RECOMPUTATION_PASSES if checkpointing else 0)
    attention = shape.layers * (shape.query_width + shape.output_width) * mean_length / 2
    return passes * (active_matrix_parameters(shape) + attention)
