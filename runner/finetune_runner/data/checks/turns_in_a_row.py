"""Conversations in which one side speaks twice in a row: many chat templates refuse them, or write them as one."""

from __future__ import annotations

from itertools import pairwise

from finetune_api.job.spec import FineTuneJobSpec
from finetune_runner.data.checking import Found, Given, Mode, Phase, Remark, judged
from finetune_runner.data.rows import Row

PHASE: Phase = "rows"
ORDER = 8


def mode(spec: FineTuneJobSpec) -> Mode:
    """Always warns: what the model's own template refuses ends the job once the model is there."""
    return "warn"


def role_in_a_row(row: Row) -> str:
    """The first role that speaks twice in a row; empty when none does."""
    return next((one["role"] for one, other in pairwise(row.messages) if one["role"] == other["role"]), "")


def check(given: Given) -> list[Remark]:
    """Report such conversations."""
    found = Found()
    for example in given.rows(*given.store.splits()):
        role = role_in_a_row(example.row)
        if role:
            found.add(example, f"({role})")
    return judged(
        "turnsInARow",
        given,
        found,
        what="[conversation has|conversations have] two turns of one role in a row",
        hint="join the two, or put the other side's turn between them",
    )
