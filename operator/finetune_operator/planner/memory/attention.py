"""The attention mask and the scores, where they exist, and the cache of keys and values."""

from __future__ import annotations

from typing import Literal

from finetune_operator.planner.shape import ModelShape

Attention = Literal["sdpa", "flash", "eager"]
"""As the plan has it: with a mask, with nothing of the kind, or with the scores of all pairs of tokens."""
MASK_BYTES = 3
"""A boolean (1) and the additive bf16 mask that SDPA makes of it (2)."""

SCORE_SAVED_BYTES = 8
"""Of `eager` attention per head and pair of tokens, kept of a block for its backward pass: probabilities in fp32 and
in 16 bit, and the capped scores. Measured as saved tensors of Gemma 2 in bf16; 6 in Llama, which caps none."""
SCORE_BACKWARD_BYTES = 10
"""Beside them while that block is computed backward: two gradients in fp32 and one in 16 bit, by its code."""
SCORE_FORWARD_BYTES = 8
"""At once in a forward pass that keeps nothing: scores, probabilities in fp32 and in 16 bit, by its code."""


def score_bytes(heads: int, row_tokens: float, tokens: float, *, blocks: int = 0) -> float:
    """Scores of `eager` attention: every token of a row with every other, per head.

    Args:
        heads: query heads.
        row_tokens: of one row; a packed row has those of all its examples.
        tokens: of all rows together.
        blocks: whose scores are kept for the backward pass; 0: a forward pass that keeps none.
    """
    pairs = float(heads) * row_tokens * tokens
    return pairs * (blocks * SCORE_SAVED_BYTES + SCORE_BACKWARD_BYTES if blocks else SCORE_FORWARD_BYTES)


def mask_bytes(micro_batch: int, sequence_length: int, *, packed: bool) -> float:
    """SDPA's dense mask: rows without padding need none, padded ones S x S each, packed ones T x T (not measured)."""
    if packed:
        return MASK_BYTES * float(micro_batch * sequence_length) ** 2
    return 0.0 if micro_batch == 1 else MASK_BYTES * float(micro_batch * sequence_length**2)


def cache_bytes(shape: ModelShape, tokens: float, blocks: int | None = None) -> float:
    """Keys and values of tokens (of all sequences together) in 16 bit, of all blocks or of so many.

    A step makes one block's anew beside the old one, and of latent attention the keys and values of that block.
    """
    per_layer = 2.0 * shape.cached_width * tokens
    return per_layer * ((shape.layers if blocks is None else blocks) + 1) + 2.0 * shape.expanded_width * tokens
