"""How likely the expected answers are: token-weighted, by an own loop.

A trainer's evaluation loss is a mean of batch means and moves with the batch size (7.79 to 7.96 on equal data).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_runner.evaluation.share import WHOLE, Share

Encoded = tuple[list[int], list[int]]
"""Input ids and labels of one example, of equal length; -100 marks what is not scored."""
IGNORED = -100
ROWS_PER_BATCH = 16
TOKENS_PER_BATCH = 16_384
LOGITS_BYTES_PER_BATCH = 4 * 2**30
"""A vocabulary of 128,256 would need 21 GB for 16,384 tokens: more than the training step itself."""
BYTES_PER_LOGIT = 10
"""bf16 from the head (2), in fp32 (4), and their log-softmax (4)."""


def tokens_per_batch(vocabulary: int) -> int:
    """Most tokens of a batch so that its logits stay within `LOGITS_BYTES_PER_BATCH`; the same for the same model."""
    return min(TOKENS_PER_BATCH, max(1, LOGITS_BYTES_PER_BATCH // (BYTES_PER_LOGIT * max(vocabulary, 1))))


def _batches(lengths: Sequence[int], most_tokens: int) -> Iterator[list[int]]:
    """Fixed batches, longest first: the same rows always share a batch, so that repeats are bitwise equal."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) == ROWS_PER_BATCH or (len(batch) + 1) * lengths[batch[0]] > most_tokens):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def score(
    model: Any,
    examples: Sequence[Encoded],
    pad_token_id: int,
    on_batch: Callable[[int], None] | None = None,
    share: Share = WHOLE,
) -> NDArray[np.float64]:
    """[rows, 2]: summed negative log-likelihood in nats and number of scored tokens of each example.

    The model must be in eval mode. `on_batch` hears how many rows are done, and may raise to stop.

    Rows of other processes' batches are zero in the result of a `share`: the sum over all has every row once.
    """
    import torch
    from torch.nn import functional

    result = np.zeros((len(examples), 2))
    done = 0
    device = next(model.parameters()).device
    most_tokens = tokens_per_batch(int(model.config.get_text_config().vocab_size))
    for batch, counts in share.turns(list(_batches([len(ids) for ids, _ in examples], most_tokens))):
        width = len(examples[batch[0]][0])
        ids = torch.full((len(batch), width), pad_token_id, dtype=torch.long)
        labels = torch.full((len(batch), width), IGNORED, dtype=torch.long)
        mask = torch.zeros((len(batch), width), dtype=torch.long)
        for row, index in enumerate(batch):
            row_ids, row_labels = examples[index]
            ids[row, : len(row_ids)] = torch.tensor(row_ids)
            labels[row, : len(row_ids)] = torch.tensor(row_labels)
            mask[row, : len(row_ids)] = 1
        labels[:, 0] = IGNORED  # nothing predicts the first token
        scored = labels != IGNORED
        if scored.any():
            # The head runs only from the first scored position on: prompts are most of the tokens.
            keep = width - int(scored.any(dim=0).nonzero()[0]) + 1
            with torch.no_grad():
                logits = model(
                    input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False, logits_to_keep=keep
                ).logits
                wanted = labels[:, width - keep + 1 :].to(device)
                losses = functional.cross_entropy(
                    logits[:, :-1].float().transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none"
                )
            if counts:
                result[batch, 0] = losses.double().sum(dim=1).cpu().numpy()
                result[batch, 1] = scored.sum(dim=1).numpy()
        done += len(batch)
        if on_batch is not None:
            on_batch(done)
    return result


def mean_loss(scores: NDArray[np.float64]) -> float:
    """Token-weighted mean in nats. Raises ValueError when nothing was scored."""
    tokens = float(scores[:, 1].sum())
    if tokens == 0:
        raise ValueError("no token of any example is scored")
    return float(scores[:, 0].sum() / tokens)
