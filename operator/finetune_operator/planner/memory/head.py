"""From the last hidden state to the loss: the logits, or what stands in for them."""

from __future__ import annotations

from typing import Literal

from finetune_operator.planner.shape import ModelShape

Head = Literal["fused", "full", "full-upcast", "autocast", "half", "fused-loss", "fused-loss-upcast"]

BYTES_PER_LOGIT: dict[Head, float] = {
    # TRL and Liger compute head and loss tile by tile: no logits.
    "fused": 0.0,
    # transformers since 4.46: bf16 logits (2), fp32 copy (4), log-softmax (4), gradients; measured. Before, logits were
    # made fp32 by the model itself, and the bf16 ones were gone before the loss: 2 less, measured likewise.
    "full": 14.25,
    "full-upcast": 12.25,
    # Two heads of other stacks, for published rows only. Chosen after the slope of Qwen's rows over the sequence length
    # (11.9 and 8.2 bytes per logit), explained by 16-bit logits and copy with fp32 inside the loss, or all in 16 bit.
    "autocast": 12.0,
    "half": 8.0,
    # Logits exist, the loss is one kernel (Unsloth's, as fms-acceleration ships it): fp32 and a shifted copy, with
    # transformers since 4.46 beside the bf16 ones.
    "fused-loss": 10.0,
    "fused-loss-upcast": 8.0,
}
LOGITS_BEFORE_A_FUSED_LOSS: frozenset[Head] = frozenset({"fused-loss", "fused-loss-upcast"})
FUSED_TILE_BYTES = 268_435_456
"""4,096 tokens x 32,768 entries of the vocabulary in bf16 (trl, trainer/utils.py)."""
CHUNK_BYTES = 512 * 2**20
"""Most that the logits of validation, likelihoods and log-probabilities take: the head runs over the scored positions
in chunks (runner, training/label_only.py)."""
BYTES_PER_CHUNKED_LOGIT = 14
"""By which the runner sizes a chunk (the same file)."""


def head_bytes(shape: ModelShape, tokens: int, head: Head) -> float:
    """Bytes of head and loss of one step. The fused head keeps the hidden states' gradient in fp32."""
    if head == "fused":
        return FUSED_TILE_BYTES + 4.0 * shape.hidden * tokens
    return BYTES_PER_LOGIT[head] * tokens * shape.vocabulary


def evaluated_logits_bytes(shape: ModelShape, tokens: int) -> float:
    """Bytes of head and loss of a batch of validation or likelihoods: the scored hidden states, and a chunk of logits.

    At most all of the batch's tokens are scored.
    """
    logits = float(BYTES_PER_CHUNKED_LOGIT * shape.vocabulary)
    return 2.0 * shape.hidden * tokens + min(max(CHUNK_BYTES, logits), logits * tokens)
