"""The pod has been given a GPU that PyTorch does not see: driver, device plugin or image."""

from __future__ import annotations

from finetune_operator.decide.causes.base import Cause

CAUSE = Cause(
    name="GPUUnavailable",
    retry="backoff",
    hint="Look at the node's driver and device plugin; the next attempt may land on another node.",
)
