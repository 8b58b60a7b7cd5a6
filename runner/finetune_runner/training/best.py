"""Which evaluation is the best one: by the validation loss, or by a measure of the objective. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_api.job.evaluation import LOWER_IS_BETTER
from finetune_api.job.spec import FineTuneJobSpec

VALIDATION_LOSS = "validationLoss"


@dataclass(frozen=True)
class Selection:
    """training.bestBy. A measure is better when it is higher, unless `lower`; the loss decides between equals."""

    best_by: str = VALIDATION_LOSS
    lower: bool = False

    @classmethod
    def of(cls, spec: FineTuneJobSpec) -> Selection:
        """The job's: `metric` is its primary one, measured on the answered validation rows."""
        best_by: str = spec.training.best_by
        if best_by == "metric":
            best_by = spec.evaluation.metrics[0].name
        return cls() if best_by in ("loss", VALIDATION_LOSS) else cls(best_by, lower=best_by in LOWER_IS_BETTER)

    def badness(self, loss: float, measures: Mapping[str, float]) -> float:
        """What early stopping watches: lower is better. What is not known is taken to be the worst."""
        if self.best_by == VALIDATION_LOSS:
            return loss
        measure = measures.get(self.best_by, 1.0 if self.lower else 0.0)
        return measure if self.lower else -measure

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
