"""How likely the expected answers are: token-weighted, by an own loop.

A trainer's evaluation loss is a mean of batch means and moves with the batch size (7.79 to 7.96 on equal data).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from finetune_runner.evaluation.fitting import Fitting
from finetune_runner.evaluation.share import WHOLE, Batch, Share

if TYPE_CHECKING:
    import torch

Encoded = tuple[list[int], list[int]]
"""Input ids and labels of one example, of equal length; -100 marks what is not scored."""
IGNORED = -100
ROWS_PER_BATCH = 16
TOKENS_PER_BATCH = 16_384
LOGITS_BYTES_PER_BATCH = 4 * 2**30
"""Where a model's own logits are asked: a vocabulary of 128,256 would need 21 GB for 16,384 tokens."""
BYTES_PER_LOGIT = 10
"""bf16 from the head (2), in fp32 (4), and their log-softmax (4)."""
SAME_LOSS = 2e-2
"""Relative, and absolute for a model that already knows the answers: what bf16 rounds by."""


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
    *,
    own_logits: bool | None = None,
) -> NDArray[np.float64]:
    """[rows, 2]: summed negative log-likelihood in nats and number of scored tokens of each example.

    The model must be in eval mode. `on_batch` hears how many rows are done, and may raise to stop.

    Logits of all positions never exist at once: the head runs over the scored positions in chunks (label_only.py). A
    model that does with its head's output what this version does not know is asked for its own logits instead, as
    with `own_logits`; which it is, is found out with the shortest example, once for each model.

    Rows of other processes' batches are zero in the result of a `share`: the sum over all has every row once.

    Raises:
        StageError: GPU_OUT_OF_MEMORY when not even one row fits.
    """
    result = np.zeros((len(examples), 2))
    done = 0
    whole = _needs_own_logits(model, examples, pad_token_id) if own_logits is None else own_logits
    most_tokens = tokens_per_batch(int(model.config.get_text_config().vocab_size)) if whole else TOKENS_PER_BATCH

    def compute(rows: Batch) -> NDArray[np.float64]:
        losses_of = _losses_of_own_logits if whole else _losses_by_chunks
        return losses_of(model, [examples[index] for index in rows], pad_token_id)

    fitting = Fitting("scoring answers", next(model.parameters()).device, splits=not share.lockstep)
    for batch, counts in share.turns(list(_batches([len(ids) for ids, _ in examples], most_tokens))):
        for part, sums in fitting.parts(batch, compute):
            if counts:
                result[part] = sums
        done += len(batch)
        if on_batch is not None:
            on_batch(done)
    return result


_OWN_LOGITS: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
"""By model of transformers: what was found out, which no adapter and no training changes (the head is frozen)."""


def _needs_own_logits(model: Any, examples: Sequence[Encoded], pad_token_id: int) -> bool:
    """Whether the loss of the shortest example by chunks is another than by the model's own logits; asked once."""
    from finetune_runner.training.label_only import plain

    asked = plain(model)
    if asked not in _OWN_LOGITS:
        shortest = min((e for e in examples if any(label != IGNORED for label in e[1][1:])), key=_length, default=None)
        if shortest is None:
            return False  # nothing is scored
        _OWN_LOGITS[asked] = not _has_plain_head(model) or _differs_by_chunks(model, shortest, pad_token_id)
    return _OWN_LOGITS[asked]


def _differs_by_chunks(model: Any, example: Encoded, pad_token_id: int) -> bool:
    own, found = (
        float(losses_of(model, [example], pad_token_id)[0, 0])
        for losses_of in (_losses_of_own_logits, _losses_by_chunks)
    )
    return not math.isclose(own, found, rel_tol=SAME_LOSS, abs_tol=SAME_LOSS)


def _length(example: Encoded) -> int:
    return len(example[0])


def _has_plain_head(model: Any) -> bool:
    from finetune_runner.training.label_only import plain

    head = plain(model).get_output_embeddings()
    weight = getattr(head, "weight", None)
    return weight is not None and weight.is_floating_point()


def _losses_by_chunks(model: Any, examples: Sequence[Encoded], pad_token_id: int) -> NDArray[np.float64]:
    """[rows, 2] as `score`, of one batch; the head runs over the scored positions in chunks."""
    import torch

    from finetune_runner.training.label_only import label_losses

    ids, labels, mask = _padded(examples, pad_token_id)
    scored = labels != IGNORED
    sums = torch.zeros(len(examples), dtype=torch.float64)
    if scored.any():
        device = next(model.parameters()).device
        inputs = {"input_ids": ids.to(device), "labels": labels.to(device)}
        if not mask.all():
            inputs["attention_mask"] = mask.to(device)
        with torch.no_grad():
            losses = label_losses(model, **inputs).double().cpu()
        sums.index_add_(0, scored.nonzero()[:, 0], losses)
    return np.stack([sums.numpy(), scored.sum(dim=1).numpy()], axis=1)


def _losses_of_own_logits(model: Any, examples: Sequence[Encoded], pad_token_id: int) -> NDArray[np.float64]:
    """The same by the logits that the model itself returns."""
    import torch
    from torch.nn import functional

    ids, labels, mask = _padded(examples, pad_token_id)
    scored = labels != IGNORED
    sums = torch.zeros(len(examples), dtype=torch.float64)
    if scored.any():
        device = next(model.parameters()).device
        # The head runs only from the first scored position on: prompts are most of the tokens.
        keep = labels.shape[1] - int(scored.any(dim=0).nonzero()[0]) + 1
        with torch.no_grad():
            logits = model(
                input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False, logits_to_keep=keep
            ).logits
            wanted = labels[:, labels.shape[1] - keep + 1 :].to(logits.device)
            losses = functional.cross_entropy(
                logits[:, :-1].float().transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none"
            )
        sums = losses.double().sum(dim=1).cpu()
    return np.stack([sums.numpy(), scored.sum(dim=1).numpy()], axis=1)


def _padded(examples: Sequence[Encoded], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, labels and attention mask of a batch, [rows, width] each, padded on the right."""
    import torch

    width = max(map(_length, examples))
    ids = torch.full((len(examples), width), pad_token_id, dtype=torch.long)
    labels = torch.full((len(examples), width), IGNORED, dtype=torch.long)
    mask = torch.zeros((len(examples), width), dtype=torch.long)
    for row, (row_ids, row_labels) in enumerate(examples):
        ids[row, : len(row_ids)] = torch.tensor(row_ids)
        labels[row, : len(row_ids)] = torch.tensor(row_labels)
        mask[row, : len(row_ids)] = 1
    labels[:, 0] = IGNORED  # nothing predicts the first token
    return ids, labels, mask


def mean_loss(scores: NDArray[np.float64]) -> float:
    """Token-weighted mean in nats. Raises ValueError when nothing was scored."""
    tokens = float(scores[:, 1].sum())
    if tokens == 0:
        raise ValueError("no token of any example is scored")
    return float(scores[:, 0].sum() / tokens)
