"""Under-fitting: training ended as planned while the validation loss was still falling."""

from __future__ import annotations

from finetune_api.stages import Finding
from finetune_runner.training.signals.base import Curve, percent

LEAST_FALL = 0.01
"""Fall over the last quarter of the evaluations, as a share of the loss. Our choice: less is not seen in a metric."""
EVALUATIONS = 3
"""Fewer say nothing of a trend."""


def look(curve: Curve) -> Finding | None:
    """The last evaluation is the best one, and a quarter of the evaluations earlier it was at least 1 % higher."""
    points, result = curve.trained, curve.result
    if result.stopped_by not in ("completed", "budget") or len(points) < EVALUATIONS:
        return None
    before, last = points[-1 - max(1, len(points) // 4)], points[-1]
    fall = 1 - last.loss / before.loss if before.loss > 0 else 0.0
    if curve.best is not last or fall < LEAST_FALL:
        return None
    more = (
        "raise compute.maxCost or maxDuration"
        if result.stopped_by == "budget"
        else (
            f"raise training.epochs, or set training.maxSteps: {last.step} and training.extendTo: {2 * last.step}, "
            "which goes on only while it still falls"
        )
    )
    return Finding(
        check="underfitting",
        severity="info",
        message=f"validation loss was still falling at the end: {before.loss:.4g} at step {before.step}, "
        f"{last.loss:.4g} at step {last.step} ({percent(fall)}). More steps would probably help: {more}",
    )
