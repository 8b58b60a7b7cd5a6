"""Leaks: rows to learn from that are (nearly) rows to be judged on. The held-out row stays, the other goes."""

from __future__ import annotations

from finetune_api.job.spec import FineTuneJobSpec
from finetune_runner.data.checking import SHOWN, Found, Given, Mode, Phase, Remark

PHASE: Phase = "splits"
ORDER = 10

_HELD_OUT_FROM = {
    "validation": ("test",),
    "train": ("test", "validation", "out_of_domain"),
    "replay": ("test", "validation", "out_of_domain"),
}


def mode(spec: FineTuneJobSpec) -> Mode:
    """Always runs."""
    return "fix"


def check(given: Given) -> list[Remark]:
    """Drop rows of validation that are in test, and rows of train and replay that are in any held-out split."""
    assert given.near is not None, "phase splits has the near-duplicates"  # noqa: S101
    remarks = []
    for split, others in _HELD_OUT_FROM.items():
        found = Found()
        for number, held in given.near.leaks(split, others):
            example = given.store.example(number)
            found.add(example, f"(like {given.store.example(held).origin})" if found.rows < SHOWN else "")
            given.drop(example)
        if found.rows:
            message = (
                f"{split}: {found.rows} rows dropped, their inputs are (nearly) in {' or '.join(others)}: "
                f"{found.where()}"
            )
            remarks.append(Remark("leaks", "warning", message, found.rows, found.positions, found.splits))
    return remarks
