"""The job asks for something that cannot be."""

from __future__ import annotations

from finetune_operator.decide.causes.base import Cause

CAUSE = Cause(
    name="InvalidSpec",
    retry="never",
    counts=True,
    hint="Correct the field named in the message and apply again.",
)
