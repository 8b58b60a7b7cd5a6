"""The loss became NaN or exploded."""

from __future__ import annotations

from finetune_operator.decide.causes.base import Cause

CAUSE = Cause(
    name="TrainingDiverged",
    retry="never",
    counts=True,
    hint="Lower training.learningRate (a tenth is a good first try) or raise training.warmupRatio.",
)
