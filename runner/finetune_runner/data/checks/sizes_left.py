"""Rows per split once more: weights and lengths took some after `sizes` had counted, and a GPU comes next."""

from __future__ import annotations

from finetune_api.job.spec import FineTuneJobSpec
from finetune_runner.data.checking import Given, Mode, Phase, Remark
from finetune_runner.data.checks.sizes import enough_rows

PHASE: Phase = "tokens"
ORDER = 90

_THINNED_OUT = "SELECT count(*) FROM rows WHERE split IS NULL AND copies = 0"
# Only rows that were in a split when their tokens were counted have a length.
_TOO_LONG = """
SELECT count(*) FROM rows JOIN lengths USING (number)
WHERE split IS NULL AND came_from NOT IN ('replay', 'out_of_domain')
"""


def mode(spec: FineTuneJobSpec) -> Mode:
    """Always runs."""
    return "fail"


def check(given: Given) -> list[Remark]:
    """Say nothing. Raises StageError (INVALID_DATA), naming what took the rows, for too few of them."""
    most = given.spec.training.max_length
    takers = (
        (_THINNED_OUT, "by data.train[].weight", "raise data.train[].weight"),
        (
            _TOO_LONG,
            f"longer than training.maxLength {most}",
            "raise training.maxLength or shorten the rows"
            + (
                " (data.overlong: truncate keeps those whose answers fit)" if given.spec.data.overlong == "drop" else ""
            ),
        ),
    )
    removed, keep = [], []
    for statement, what, fix in takers:
        (rows,) = given.store.database.execute(statement).fetchone()
        if rows:
            removed.append(f"{rows} {what}")
            keep.append(fix)
    enough_rows(given, f"removed since the split: {', '.join(removed)}" if removed else "", ", ".join(keep))
    return []
