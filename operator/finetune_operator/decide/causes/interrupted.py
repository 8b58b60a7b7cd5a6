"""The process was asked to stop and saved its work."""

from __future__ import annotations

from finetune_operator.decide.causes.base import Cause

CAUSE = Cause(
    name="Interrupted",
    retry="soon",
    counts=False,
    hint="The next attempt resumes from the checkpoint saved on the way out.",
)
