"""dpo: the better answer of a pair is to gain on the worse one (Rafailov et al. 2023, equation 7)."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from operator import add
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from finetune_runner.data.lazy_sequence import Joined
from finetune_runner.evaluation.likelihood import Encoded
from finetune_runner.training.encoded_rows import lengths_of
from finetune_runner.training.objectives.base import Batch, Start, Sums
from finetune_runner.training.objectives.preference import (
    ReferenceStore,
    Scorer,
    reference_log_probabilities,
    sequence_log_probabilities,
)
from finetune_runner.training.objectives.sft import pad

if TYPE_CHECKING:
    from finetune_runner.training.distributed import World


def pair_losses(margins: torch.Tensor, beta: float) -> torch.Tensor:
    """[pairs] losses: -log sigmoid(beta * margin).

    Args:
        margins: [pairs]; how much more likely, in nats, the better answer has become than the worse one.
        beta: strength of the tie to the reference.
    """
    return -functional.logsigmoid(beta * margins)


class DirectPreference:
    """Objective `dpo` (objectives/base.py) over encoded pairs.

    Args:
        train: [2 x pairs]; the better and the worse answer to one prompt, each with its prompt, in turn.
        validation: the same.
        beta: strength of the tie to the reference.
        scorer: asks the model.
        store: keeps what the reference said.
    """

    def __init__(
        self,
        train: Sequence[Encoded],
        validation: Sequence[Encoded],
        beta: float,
        scorer: Scorer,
        store: ReferenceStore,
    ) -> None:
        self._train = train
        self._validation = validation
        self._beta = beta
        self._scorer = scorer
        self._store = store
        lengths = lengths_of(train)
        self.lengths: Sequence[int] = array("q", map(add, lengths[::2], lengths[1::2]))
        self.counts: Sequence[int] = array("q", [1]) * len(self.lengths)
        self._reference = torch.zeros(len(train) // 2, 2)
        """[train pairs, 2] log-probabilities under the reference, better first."""
        self._validation_reference = torch.zeros(len(validation) // 2, 2)

    def prepare(self, model: Any, world: World, on_batch: Callable[[int], None], start: Start) -> None:
        """Ask the model for its log-probabilities before its first step."""
        answers = Joined(self._train, self._validation)
        values = reference_log_probabilities(self._scorer, self._store, model, answers, world, on_batch, start)
        values = values.reshape(-1, 2)
        self._reference = values[: len(self.lengths)]
        self._validation_reference = values[len(self.lengths) :]

    def begin_step(self, model: Any, indices: Sequence[int], world: World) -> None:
        """Nothing: a pair is compared with itself."""

    def collate(self, indices: Sequence[int], *, packed: bool) -> Batch:
        """`input_ids` and `labels`, [2 x pairs, width], all better answers first; `reference`, [pairs, 2]."""
        if packed:
            raise ValueError("pairs are not packed")
        answers = [self._train[2 * index + side] for side in (0, 1) for index in indices]
        batch = pad(answers, self._scorer.pad_token_id)
        return {**batch, "reference": self._reference[list(indices)]}

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Summed loss of the pairs."""
        found = sequence_log_probabilities(model, batch["input_ids"], batch["labels"])
        better, worse = found.chunk(2)
        reference = batch["reference"].to(found.dtype)
        margins = (better - reference[:, 0]) - (worse - reference[:, 1])
        return pair_losses(margins, self._beta).sum()

    def validation(self, model: Any, world: World, on_batch: Callable[[int], None]) -> Sums:
        """Loss, reward accuracy and reward margin over the validation pairs."""
        found = self._scorer.score(model, self._validation, world, on_batch).reshape(-1, 2)
        gained = found - self._validation_reference
        margins = gained[:, 0] - gained[:, 1]
        return Sums(
            loss=float(pair_losses(margins, self._beta).sum()),
            count=float(len(margins)),
            measures={
                "rewardAccuracy": float((margins > 0).sum()),
                "rewardMargin": float((self._beta * margins).sum()),
            },
        )
