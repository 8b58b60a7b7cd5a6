"""Leaks: rows to learn from that are (nearly) rows to be judged on. The held-out row stays, the other goes."""

from __future__ import annotations

from dataclasses import replace

from finetune_api.exit_codes import ExitCode
from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.wording import agreeing
from finetune_runner.data.checking import SHOWN, Found, Given, Mode, Phase, Remark, judged, mode_of
from finetune_runner.errors import StageError

PHASE: Phase = "splits"
ORDER = 10

_KEPT_APART_FROM = {
    "validation": ("test",),
    "out_of_domain": ("test", "validation"),
    "train": ("test", "validation", "out_of_domain"),
    "replay": ("test", "validation", "out_of_domain", "train"),
}
"""Every pair of splits once: of two rows that are alike the one of the split on the left is objected to."""
_LEARNED = ("train", "replay")
"""Of conversations all answers are learned: what asks for an earlier one is an input too."""


def mode(spec: FineTuneJobSpec) -> Mode:
    """As data.checks.leaks says."""
    return mode_of(spec.data.checks.leaks)


def check(given: Given) -> list[Remark]:
    """Drop, report or refuse rows whose input is (nearly) in a split that must not know it.

    Raises:
        StageError: INVALID_DATA in mode fail, and when nothing of train is left.
    """
    assert given.near is not None, "phase splits has the near-duplicates"  # noqa: S101
    remarks: list[Remark] = []
    for split, others in _KEPT_APART_FROM.items():
        found = Found()
        for number, held in given.near.leaks(split, others, earlier=split in _LEARNED):
            example = given.store.example(number)
            found.add(example, f"(like {given.store.example(held).origin})" if found.rows < SHOWN else "")
            if given.mode == "fix":
                given.drop(example)
        if split == "train" and found.rows and found.rows == given.count(split) and given.mode == "fix":
            every = agreeing(
                found.rows,
                f"[the only row of train has an input that is|all {found.rows} rows of train have inputs that are]",
            )
            apart = " or ".join(other for other in others if given.count(other))
            raise StageError(
                ExitCode.INVALID_DATA,
                f"{every} (nearly) in {apart}: {found.where()}",
                "give data.test.source, data.validation.source and evaluation.outOfDomain rows that are not in "
                "data.train, or leave the first two out: they are then split off",
                found.positions[0],
            )
        remarks += [
            replace(remark, severity="warning")  # dropped or not: somebody mixed what must be kept apart
            for remark in judged(
                "leaks",
                given,
                found,
                what=f"[row has an input that is|rows have inputs that are] (nearly) in {' or '.join(others)}",
                hint="remove them from one of the two, or set data.checks.leaks: drop",
                place=split,
            )
        ]
    return remarks
