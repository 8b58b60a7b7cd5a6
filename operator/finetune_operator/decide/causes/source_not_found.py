"""A source does not exist."""

from __future__ import annotations

from finetune_operator.decide.causes.base import Cause

CAUSE = Cause(
    name="SourceNotFound",
    retry="never",
    counts=True,
    hint="Check the bucket, path or revision named in the message.",
)
