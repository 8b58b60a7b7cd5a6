"""Storage or hub refused the credentials."""

from __future__ import annotations

from finetune_operator.decide.causes.base import Cause

CAUSE = Cause(
    name="AccessDenied",
    retry="never",
    counts=True,
    hint="Check the Secret named in secretRef, or what the service account may read and write.",
)
