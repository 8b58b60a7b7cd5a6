"""Rows per split: enough to train on, and enough to judge by."""

from __future__ import annotations

from finetune_api.exit_codes import ExitCode
from finetune_api.job.spec import FineTuneJobSpec
from finetune_runner.data.checking import Given, Mode, Phase, Remark
from finetune_runner.errors import StageError

PHASE: Phase = "splits"
ORDER = 20

_TEST_ROWS_WANTED = 200


def mode(spec: FineTuneJobSpec) -> Mode:
    """Always runs."""
    return "fail"


def check(given: Given) -> list[Remark]:
    """Report a small test split. Raises StageError (INVALID_DATA) for too few train rows or an empty split."""
    rows = {split: given.count(split) for split in ("train", "validation", "test")}
    spec = given.spec.data
    counts = (
        f"{sum(rows.values())} usable rows: {rows['train']} train, {rows['validation']} validation, {rows['test']} test"
    )
    if rows["train"] < spec.checks.minimum_rows:
        raise StageError(
            ExitCode.INVALID_DATA,
            f"{counts}; data.checks.minimumRows asks for {spec.checks.minimum_rows} train rows",
            "add rows (below 50 a prompt with examples usually beats tuning), or lower data.checks.minimumRows",
        )
    for split in ("validation", "test"):
        if not rows[split]:
            raise StageError(
                ExitCode.INVALID_DATA,
                f"{counts}; split {split} is empty",
                f"add rows that are not near-duplicates of each other, or give data.{split}.source",
            )
    if rows["test"] < _TEST_ROWS_WANTED:
        message = (
            f"test has {rows['test']} rows; below {_TEST_ROWS_WANTED} only large differences can be told from "
            "chance: add rows, or give data.test.source"
        )
        return [Remark("sizes", "warning", message, rows["test"])]
    return []
