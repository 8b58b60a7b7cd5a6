"""Answers that refuse: usually left over from the model that generated the data."""

from __future__ import annotations

import re

from finetune_api.stages import Finding
from finetune_runner.data.checking import TASK_SPLITS, Given, Phase, Seen, listed

PHASE: Phase = "rows"
ORDER = 40

_REFUSAL = re.compile(
    r"^\W*(i['\u2019]?m sorry,? but|i am sorry,? but|sorry,? (but )?i (can(['\u2019]t|not)|am unable)|"
    r"i (can(['\u2019]t|not)|am unable to) (help|assist|answer|provide|comply)|as an ai\b)",
    re.IGNORECASE,
)


def check(given: Given) -> Seen:
    """Report answers that begin like a refusal."""
    found = [
        example.origin
        for split in TASK_SPLITS
        for example in given.splits.get(split, [])
        if _REFUSAL.match(example.row.answer)
    ]
    if not found:
        return Seen()
    message = f"{len(found)} answers refuse: {listed(found)}; remove them unless the model shall refuse"
    return Seen([Finding(check="refusals", severity="warning", message=message[:512], rows=len(found))])
