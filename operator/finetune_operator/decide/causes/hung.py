"""No training step for too long."""

from __future__ import annotations

from finetune_operator.decide.causes.base import Cause

CAUSE = Cause(
    name="Hung",
    retry="backoff",
    counts=True,
    hint="The next attempt resumes from the last checkpoint; if it hangs again, look at the network between the pods.",
)
