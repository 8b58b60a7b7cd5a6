"""Evaluations that took much more of the training than they were planned to."""

from __future__ import annotations

from finetune_api.stages import Finding
from finetune_runner.training.signals.base import Curve, percent

LARGEST_SHARE = 0.4
"""Of steps and evaluations together: twice what planning aims at (planner/evaluations.py). Our choice."""
LEAST_S = 600.0
"""Less is not worth a word. Our choice."""


def look(curve: Curve) -> Finding | None:
    """The seconds of this attempt as they were measured."""
    spent = curve.result.seconds
    together = spent.validation + spent.data + spent.compute + spent.optimizer
    if spent.validation < LEAST_S or spent.validation <= LARGEST_SHARE * together:
        return None
    return Finding(
        check="evaluations",
        severity="info",
        message=f"evaluations took {percent(spent.validation / together)} of the training's time, "
        f"{spent.validation / 60:.0f} of {together / 60:.0f} minutes. A larger training.evalSteps, fewer "
        "training.validationSamples or a smaller evaluation.maxNewTokens makes it shorter",
    )
