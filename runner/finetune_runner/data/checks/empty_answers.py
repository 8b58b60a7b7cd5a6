"""Answers that say nothing: placeholders of forms and exports. One without any text is refused when it is read."""

from __future__ import annotations

import re

from finetune_api.job.spec import FineTuneJobSpec
from finetune_runner.data.checking import TASK_SPLITS, Found, Given, Mode, Phase, Remark, judged, mode_of

PHASE: Phase = "rows"
ORDER = 41

_NOTHING = re.compile(
    r"\s*(n\.?/?a\.?|nan|null|none|nil|undefined|tbd|to do|todo|fixme|lorem ipsum.*|<empty>|\[empty\]|"
    r"\(?no (answer|response|output|content)\)?|\[?(deleted|removed)\]?|[\W_]+)\s*",
    re.IGNORECASE | re.DOTALL,
)
_LABELS_TO_SPARE = 0.02


def mode(spec: FineTuneJobSpec) -> Mode:
    """As data.checks.emptyAnswers says."""
    return mode_of(spec.data.checks.empty_answers)


def says_nothing(answer: str) -> bool:
    """Whether an answer is a placeholder, or has neither letter nor digit."""
    return _NOTHING.fullmatch(answer) is not None


def check(given: Given) -> list[Remark]:
    """Report, drop or refuse answers that say nothing. Raises StageError (INVALID_DATA) in mode fail.

    In a classification such a word may be a class of its own (`none`): above 2 % of the rows it is let be.
    """
    found, rows = Found(), 0
    for example in given.rows(*TASK_SPLITS):
        rows += 1
        if says_nothing(example.row.said):
            found.add(example)
    classes = given.spec.evaluation.task.type == "classification"
    if classes and found.rows > _LABELS_TO_SPARE * rows:
        return []
    if given.mode == "fix":
        for example in given.rows(*TASK_SPLITS):
            if says_nothing(example.row.said):
                given.drop(example)
    return judged(
        "emptyAnswers",
        given,
        found,
        what="[answer says|answers say] nothing",
        hint="give them an answer, or remove the rows",
    )
