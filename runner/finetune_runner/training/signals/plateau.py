"""A floor: for most of the training the validation loss fell no further."""

from __future__ import annotations

from finetune_api.stages import Finding
from finetune_runner.training.signals.base import Curve, percent

LEAST_GAIN = 0.01
"""As for a fall that still counts (still_falling.py)."""
LARGEST_SHARE = 0.5
"""Of the steps, on the floor. Our choice: half the cost for nothing is worth a word."""


def look(curve: Curve) -> Finding | None:
    """The first evaluation within 1 % of the best one, and more than half of the steps after it."""
    best, points = curve.best, curve.trained
    if best is None or best.loss >= curve.result.initial_validation_loss:
        return None
    floor = next(point for point in points if point.loss <= best.loss * (1 + LEAST_GAIN))
    after = points[-1].step - floor.step
    if after <= LARGEST_SHARE * points[-1].step:
        return None
    gain = 1 - best.loss / floor.loss if floor.loss > 0 else 0.0
    return Finding(
        check="plateau",
        severity="info",
        message=f"validation loss reached its floor of {floor.loss:.4g} at step {floor.step}; the {after} steps after "
        f"it gained {percent(gain)}. The same result costs less with training.maxSteps: {floor.step}; a lower loss "
        "needs other data, a higher method.rank or another learning rate",
    )
