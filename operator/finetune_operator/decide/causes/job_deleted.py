"""The Job of a running stage disappeared."""

from __future__ import annotations

from finetune_operator.decide.causes.base import Cause

CAUSE = Cause(
    name="JobDeleted",
    retry="soon",
    counts=False,
    hint="Somebody deleted the stage's Job; it is started again.",
)
