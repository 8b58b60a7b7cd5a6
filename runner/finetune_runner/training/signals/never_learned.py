"""The validation loss never fell below where it started."""

from __future__ import annotations

from finetune_api.stages import Finding
from finetune_runner.training.signals.base import Curve


def look(curve: Curve) -> Finding | None:
    """Any fall, however small, is learning; how much it is worth is the evaluation's matter."""
    result = curve.result
    if result.best_validation_loss < result.initial_validation_loss:
        return None
    return Finding(
        check="learning",
        severity="warning",
        message=f"validation loss never fell below its start ({result.initial_validation_loss:.4g}); the kept step "
        f"{result.best_step} has {result.best_validation_loss:.4g}. Check the data, or lower training.learningRate",
    )
