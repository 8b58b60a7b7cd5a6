"""Over-fitting: the validation loss rises from its best while the training loss goes on falling."""

from __future__ import annotations

from finetune_api.stages import Finding
from finetune_runner.training.signals.base import Curve, percent

LARGEST_GENERALISATION_LOSS = 0.05
"""Rise of the last validation loss over the best one, as a share: the largest of the thresholds that Prechelt 1998,
"Early Stopping - but when?", compares for his criterion GL."""


def look(curve: Curve) -> Finding | None:
    """The end against the best evaluation: GL above 5 %, and a training loss below the one then."""
    best = curve.best
    if best is None:
        return None
    last = curve.trained[-1]
    rise = last.loss / best.loss - 1 if best.loss > 0 else 0.0
    falls_on = last.train_loss is not None and best.train_loss is not None and last.train_loss < best.train_loss
    if rise <= LARGEST_GENERALISATION_LOSS or not falls_on:
        return None
    return Finding(
        check="overfitting",
        severity="warning",
        message=f"over-fitting: after step {best.step} validation loss rose from {best.loss:.4g} to {last.loss:.4g} "
        f"(step {last.step}, {percent(rise)}) while training loss fell from {best.train_loss:.4g} to "
        f"{last.train_loss:.4g}. Step {curve.result.best_step} is kept; with fewer training.epochs, a lower "
        "training.learningRate or more rows the rest would not have been for nothing",
    )
