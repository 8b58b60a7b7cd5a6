"""Answers that refuse: usually left over from the model that generated the data."""

from __future__ import annotations

import re

from finetune_api.job.spec import FineTuneJobSpec
from finetune_runner.data.checking import TASK_SPLITS, Found, Given, Mode, Phase, Remark, judged, mode_of

PHASE: Phase = "rows"
ORDER = 40

_REFUSAL = re.compile(
    r"^\W*(i['\u2019]?m sorry,? but|i am sorry,? but|sorry,? (but )?i (can(['\u2019]t|not)|am unable)|"
    r"i (can(['\u2019]t|not)|am unable to) (help|assist|answer|provide|comply|fulfil|do that)|"
    r"as an? (ai|(large )?language model)\b|"
    r"es tut mir leid,? (aber )?ich kann|leider kann ich (ihnen |dir )?(dabei |damit )?nicht|als ki\b|"
    r"je suis d\u00e9sol\u00e9e?,? mais|en tant qu['\u2019](ia|intelligence artificielle)\b|"
    r"lo siento,? pero|como (una )?(ia|inteligencia artificial)\b)",
    re.IGNORECASE,
)
"""How models begin a refusal in English, German, French and Spanish; other languages are not known."""


def mode(spec: FineTuneJobSpec) -> Mode:
    """As data.checks.refusals says."""
    return mode_of(spec.data.checks.refusals)


def refuses(answer: str) -> bool:
    """Whether an answer begins like a refusal."""
    return _REFUSAL.match(answer) is not None


def check(given: Given) -> list[Remark]:
    """Report or drop answers that begin like a refusal. Raises StageError (INVALID_DATA) in mode fail."""
    found = Found()
    for example in given.rows(*TASK_SPLITS):
        if refuses(example.row.answer):
            found.add(example)
            if given.mode == "fix":
                given.drop(example)
    return judged("refusals", given, found, what="answers refuse", hint="remove them unless the model shall refuse")
