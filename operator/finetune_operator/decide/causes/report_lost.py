"""A pod ended well but said nothing."""

from __future__ import annotations

from finetune_operator.decide.causes.base import Cause

CAUSE = Cause(
    name="ReportLost",
    retry="backoff",
    counts=True,
    hint="The stage ended without a readable report, and none was found in storage.",
)
