"""A training loss near zero that validation does not share: the rows are known by heart."""

from __future__ import annotations

from finetune_api.stages import Finding
from finetune_runner.training.signals.base import Curve

LOW_TRAIN_LOSS = 0.2
"""In nats: below it "your model is likely overfitting" (Unsloth's LoRA hyper-parameters guide)."""
LARGEST_RATIO = 2.0
"""Of validation to training loss. Our choice: short answers of a few labels reach 0.2 honestly, on both."""


def look(curve: Curve) -> Finding | None:
    """At the end: training loss below 0.2, and validation loss more than twice it."""
    result = curve.result
    if not curve.trained or result.train_loss >= LOW_TRAIN_LOSS:
        return None
    last = curve.trained[-1]
    if last.loss <= LARGEST_RATIO * result.train_loss:
        return None
    return Finding(
        check="memorisation",
        severity="warning",
        message=f"training loss ended at {result.train_loss:.3g}, validation loss at {last.loss:.3g} "
        f"(step {last.step}): the training rows are known by heart. Use fewer training.epochs, more rows, or "
        "method.dropout; look at duplicates and at the answers of out-of-domain rows",
    )
