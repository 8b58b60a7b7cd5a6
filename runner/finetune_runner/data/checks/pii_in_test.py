"""Redacted rows of the held-out splits: what is judged there is not quite what was asked, so their share is told."""

from __future__ import annotations

from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.wording import agreeing, counted
from finetune_runner.data.checking import HELD_OUT, Found, Given, Mode, Phase, Remark
from finetune_runner.data.checks.pii import REDACTED

PHASE: Phase = "splits"
ORDER = 90


def mode(spec: FineTuneJobSpec) -> Mode:
    """Runs where data.checks.pii redacts."""
    return "warn" if spec.data.checks.pii == "redact" else "off"


def check(given: Given) -> list[Remark]:
    """Tell the share of redacted rows by held-out split."""
    given.store.database.execute(REDACTED)
    remarks = []
    for split in HELD_OUT:
        found = Found()
        numbers = given.store.database.execute(
            "SELECT number FROM rows JOIN redacted USING (number) WHERE split = ? ORDER BY number", (split,)
        )
        for (number,) in numbers:
            found.add(given.store.example(number))
        if found.rows:
            share = found.rows / given.count(split)
            message = (
                f"{split}: {found.rows} of {counted(given.count(split), 'row')} ({100 * share:.1f} %) "
                f"{agreeing(found.rows, '[was|were]')} redacted: "
                f"{found.where()}; the model in use will see what was redacted here"
            )
            remarks.append(found.remark("pii", "warning", message, {"share": share}))
    return remarks
