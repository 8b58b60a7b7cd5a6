"""What PyTorch's allocator holds on to where the logits exist: blocks too large for anything but other logits.

Segments that cannot grow are given out again only where a block fits into one: of a step's logits (16 bit, fp32, the
shifted copy and its gradient) those of the forward pass are not asked for again in that size, and what the blocks of
the model need backward takes room in them only in part. The runner makes no such logits, and its segments may grow.
"""

from __future__ import annotations

BYTES_PER_STRANDED_LOGIT = 6.0
"""16 bit and fp32 of the forward pass. Explained so; chosen after the rows of Llama-3.1-8B with a fused loss."""
STRANDED_BLOCK_SHARE = 0.42
"""Of what a block needs backward, that finds no room in them. Fitted: rows of Mistral-7B on one GPU, fused loss."""

BYTES_PER_LOGIT_OF_OTHER_ROWS = 34.0
"""Held besides the longest row's where rows of every length pass by one after the other, per logit of a mean row.
Fitted: ms-swift's rows of Qwen-7B, by Qwen's own model code."""


def other_rows_bytes(logits: float) -> float:
    """Bytes reserved for rows of other lengths than the longest, which its logits do not fit into.

    Args:
        logits: of a mean batch, padded: tokens x vocabulary.
    """
    return BYTES_PER_LOGIT_OF_OTHER_ROWS * logits


def stranded_bytes(logits: float, head: float, recomputation: float, peak: float) -> float:
    """Bytes reserved beyond the tensors of the peak, where the loss is one kernel over logits in full.

    Args:
        logits: how many there are, tokens x vocabulary.
        head: bytes that are allocated for head and loss.
        recomputation: bytes of the block that is computed again.
        peak: bytes of the larger one of the two moments, with all that comes with it.
    """
    held = head + BYTES_PER_STRANDED_LOGIT * logits + STRANDED_BLOCK_SHARE * recomputation
    return max(0.0, held - peak)
