"""The attention mask, where it exists, and the cache of keys and values."""

from __future__ import annotations

from finetune_operator.planner.shape import ModelShape

MASK_BYTES = 3
"""A boolean (1) and the additive bf16 mask that SDPA makes of it (2)."""


def mask_bytes(micro_batch: int, sequence_length: int, *, packed: bool) -> float:
    """SDPA's dense mask: rows without padding need none, padded ones S x S each, packed ones T x T (not measured)."""
    if packed:
        return MASK_BYTES * float(micro_batch * sequence_length) ** 2
    return 0.0 if micro_batch == 1 else MASK_BYTES * float(micro_batch * sequence_length**2)


def cache_bytes(shape: ModelShape, tokens: float, blocks: int | None = None) -> float:
    """Keys and values of tokens (of all sequences together) in 16 bit, of all blocks or of so many.

    A step makes one block's anew beside the old one.
    """
    per_layer = 2.0 * 2 * shape.key_value_width * tokens
    return per_layer * ((shape.layers if blocks is None else blocks) + 1)
