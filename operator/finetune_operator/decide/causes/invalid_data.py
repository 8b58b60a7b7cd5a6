"""The data cannot be trained on."""

from __future__ import annotations

from finetune_operator.decide.causes.base import Cause

CAUSE = Cause(
    name="InvalidData",
    retry="never",
    counts=True,
    hint="Correct the rows named in the message, upload again, and edit or re-create the job.",
)
