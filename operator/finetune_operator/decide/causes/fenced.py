"""An old attempt noticed that it is not the newest."""

from __future__ import annotations

from finetune_operator.decide.causes.base import Cause

CAUSE = Cause(
    name="Fenced",
    retry="soon",
    counts=False,
    hint="A newer attempt had already taken over; nothing was lost.",
)
