"""sft: the next-token loss over the labelled tokens."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from finetune_runner.evaluation.likelihood import IGNORED, Encoded, score
from finetune_runner.evaluation.share import Share
from finetune_runner.training.encoded_rows import lengths_of
from finetune_runner.training.label_only import label_losses
from finetune_runner.training.objectives.base import Batch, Start, Sums

if TYPE_CHECKING:
    from finetune_runner.training.distributed import World


class SupervisedFineTuning:
    """Objective `sft` (objectives/base.py) over encoded rows.

    `lockstep`: whether the weights are spread over the processes (see `Share`).
    """

    def __init__(
        self, train: Sequence[Encoded], validation: Sequence[Encoded], pad_token_id: int, *, lockstep: bool = True
    ) -> None:
        self._train = train
        self._validation = validation
        self._pad_token_id = pad_token_id
        self._lockstep = lockstep
        self.lengths: Sequence[int] = lengths_of(train)
        # Nothing predicts the first token of an example.
        self.counts: Sequence[int] = array("q", (len(labels) - 1 - labels[1:].count(IGNORED) for _, labels in train))

    def collate(self, indices: Sequence[int], *, packed: bool) -> Batch:
        """`input_ids` and `labels`, [rows, width]; packed: [1, tokens] with `position_ids` that start anew."""
        examples = [self._train[index] for index in indices]
        if packed:
            return flatten(examples)
        return pad(examples, self._pad_token_id)

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Summed cross-entropy in nats over the labelled tokens."""
        return label_losses(model, **batch).sum()

    def prepare(self, model: Any, world: World, on_batch: Callable[[int], None], start: Start) -> None:
        """Nothing: answers are compared with nothing."""

    def begin_step(self, model: Any, indices: Sequence[int], world: World) -> None:
        """Nothing."""

    def validation(self, model: Any, world: World, on_batch: Callable[[int], None]) -> Sums:
        """Summed negative log-likelihood in nats, and tokens, of this rank's batches."""
        share = Share(world.rank, world.size, lockstep=self._lockstep)
        scores = score(model, self._validation, self._pad_token_id, on_batch, share=share)
        return Sums(float(scores[:, 0].sum()), float(scores[:, 1].sum()))


def pad(examples: Sequence[Encoded], pad_token_id: int) -> Batch:
    """[rows, width]: padded on the right.

    There is no attention mask: a causal model's real tokens never look at the padding behind them, and without a mask
    SDPA may use its flash kernel.
    """
    width = max(len(ids) for ids, _ in examples)
    ids = torch.full((len(examples), width), pad_token_id, dtype=torch.long)
    labels = torch.full((len(examples), width), IGNORED, dtype=torch.long)
    for row, (row_ids, row_labels) in enumerate(examples):
        ids[row, : len(row_ids)] = torch.tensor(row_ids)
        labels[row, : len(row_ids)] = torch.tensor(row_labels)
    return {"input_ids": ids, "labels": labels}


def flatten(examples: Sequence[Encoded]) -> Batch:
    """[1, tokens]: one example after the other, told apart by positions that start anew.

    With an attention mask of ones beside the positions transformers would let examples see each other
    (transformers#46634), so there is none. The first label of each example is nobody's next token.
    """
    ids = [token for row_ids, _ in examples for token in row_ids]
    labels = [label for _, row_labels in examples for label in (IGNORED, *row_labels[1:])]
    positions = [position for row_ids, _ in examples for position in range(len(row_ids))]
    tensors = {"input_ids": ids, "labels": labels, "position_ids": positions}
    return {name: torch.tensor([values], dtype=torch.long) for name, values in tensors.items()}
