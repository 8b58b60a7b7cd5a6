"""Exact duplicates: the same messages twice in one split."""

from __future__ import annotations

from dataclasses import replace

from finetune_api.job.spec import FineTuneJobSpec
from finetune_runner.data.checking import SHOWN, Found, Given, Mode, Phase, Remark, judged, mode_of
from finetune_runner.data.wanted import POOL

PHASE: Phase = "rows"
ORDER = 10


def mode(spec: FineTuneJobSpec) -> Mode:
    """As data.checks.duplicates says."""
    return mode_of(spec.data.checks.duplicates)


def check(given: Given) -> list[Remark]:
    """Drop, report or refuse duplicates of the training data.

    Rows of explicit held-out sources are counted once whatever the mode: a repeated row would weigh double in a metric.
    """
    remarks: list[Remark] = []
    for split in given.store.splits():
        here = given if split == POOL else replace(given, mode="fix")
        found = Found()
        with given.groups() as groups:
            for example in given.rows(split):
                groups.add(example.row.id, example.number)
            for number, first in groups.later():
                example = given.store.example(number)
                found.add(example, f"(= {given.store.example(first).origin})" if found.rows < SHOWN else "")
                if here.mode == "fix":
                    given.drop(example)
        place = "data.train" if split == POOL else split
        hint = "remove them, or set data.checks.duplicates: drop"
        remarks += judged("duplicates", here, found, what="exact [duplicate|duplicates]", hint=hint, place=place)
    return remarks
