"""Exact duplicates: the same messages twice in one split."""

from __future__ import annotations

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import Finding
from finetune_runner.data.checking import Given, Phase, Seen, listed
from finetune_runner.errors import StageError

PHASE: Phase = "rows"
ORDER = 10


def check(given: Given) -> Seen:
    """Drop, report or refuse duplicates of the training data as data.checks.duplicates says.

    Rows of explicit held-out sources are counted once whatever it says: a repeated row would weigh double in a metric.
    """
    policy = given.spec.data.checks.duplicates
    findings: list[Finding] = []
    drop: dict[str, set[int]] = {}
    for split, examples in given.splits.items():
        first: dict[str, str] = {}
        repeated: dict[int, str] = {}
        for number, example in enumerate(examples):
            if example.row.id in first:
                repeated[number] = f"{example.origin} (= {first[example.row.id]})"
            else:
                first[example.row.id] = example.origin
        if not repeated:
            continue
        where = listed(list(repeated.values()), 3)
        if split == "pool" and policy == "fail":
            raise StageError(
                ExitCode.INVALID_DATA,
                f"data.train has {len(repeated)} exact duplicates: {where}",
                "remove them, or set data.checks.duplicates: drop",
            )
        kept = split == "pool" and policy == "warn"
        if not kept:
            drop[split] = set(repeated)
        findings.append(
            Finding(
                check="duplicates",
                severity="warning" if kept else "info",
                message=f"{split}: {len(repeated)} exact duplicates {'kept' if kept else 'dropped'}: {where}"[:512],
                rows=len(repeated),
            )
        )
    return Seen(findings, drop)
