"""The run used up compute.maxDuration."""

from __future__ import annotations

from finetune_operator.decide.causes.base import Cause

CAUSE = Cause(
    name="DeadlineExceeded",
    retry="never",
    counts=True,
    hint="Raise compute.maxDuration, or train less (training.epochs, training.maxSteps).",
)
