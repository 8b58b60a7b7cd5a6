"""Batches of likelihoods: a large vocabulary makes them smaller, never the rows lost."""

from __future__ import annotations

import pytest

from finetune_runner.evaluation.likelihood import (
    BYTES_PER_LOGIT,
    LOGITS_BYTES_PER_BATCH,
    TOKENS_PER_BATCH,
    _batches,
    tokens_per_batch,
)


@pytest.mark.parametrize(
    ("vocabulary", "tokens"), [(1000, TOKENS_PER_BATCH), (32000, 13421), (128256, 3348), (256000, 1677)]
)
def test_logits_of_a_batch_stay_within_their_bytes(vocabulary: int, tokens: int) -> None:
    assert tokens_per_batch(vocabulary) == tokens
    assert tokens * vocabulary * BYTES_PER_LOGIT <= LOGITS_BYTES_PER_BATCH


def test_every_row_is_in_one_batch_and_a_row_beyond_the_limit_is_alone() -> None:
    lengths = [100, 5000, 300, 200, 3000]
    batches = list(_batches(lengths, 3348))
    assert sorted(index for batch in batches for index in batch) == [0, 1, 2, 3, 4]
    assert batches[0] == [1]
    assert all(len(batch) * lengths[batch[0]] <= 3348 for batch in batches[1:])
