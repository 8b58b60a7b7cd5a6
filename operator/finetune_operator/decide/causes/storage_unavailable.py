"""Storage did not answer."""

from __future__ import annotations

from finetune_operator.decide.causes.base import Cause

CAUSE = Cause(
    name="StorageUnavailable",
    retry="backoff",
    counts=True,
    hint="Check storage.endpoint and the network policy of the namespace; the stage is tried again by itself.",
)
