"""Which evaluation is the best one: by the validation loss, or by a measure of the objective. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_api.job.training import BestBy

VALIDATION_LOSS = "validationLoss"


@dataclass(frozen=True)
class Selection:
    """training.bestBy. Measures are better when they are higher; the loss decides between equals."""

    best_by: BestBy = "validationLoss"

    def badness(self, loss: float, measures: Mapping[str, float]) -> float:
        """What early stopping watches: lower is better. Before a measure is known it is taken to be 0."""
        return loss if self.best_by == VALIDATION_LOSS else -measures.get(self.best_by, 0.0)

    def better(
        self,
        loss: float,
        measures: Mapping[str, float],
        best_loss: float | None,
        best_measures: Mapping[str, float],
    ) -> bool:
        """Whether an evaluation beats the best one so far."""
        if best_loss is None:
            return True
        new = (self.badness(loss, measures), loss)
        return new < (self.badness(best_loss, best_measures), best_loss)
