"""Answers that refuse: usually left over from the model that generated the data."""

from __future__ import annotations

import re

from finetune_api.job.spec import FineTuneJobSpec
from finetune_runner.data.checking import TASK_SPLITS, Found, Given, Mode, Phase, Remark, judged

PHASE: Phase = "rows"
ORDER = 40

_REFUSAL = re.compile(
    r"^\W*(i['\u2019]?m sorry,? but|i am sorry,? but|sorry,? (but )?i (can(['\u2019]t|not)|am unable)|"
    r"i (can(['\u2019]t|not)|am unable to) (help|assist|answer|provide|comply)|as an ai\b)",
    re.IGNORECASE,
)


def mode(spec: FineTuneJobSpec) -> Mode:
    """Always runs."""
    return "warn"


def check(given: Given) -> list[Remark]:
    """Report answers that begin like a refusal."""
    found = Found()
    for example in given.rows(*TASK_SPLITS):
        if _REFUSAL.match(example.row.answer):
            found.add(example)
    return judged("refusals", given, found, what="answers refuse", hint="remove them unless the model shall refuse")
