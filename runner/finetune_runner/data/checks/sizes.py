"""Rows per split: enough to train on, and enough to judge by."""

from __future__ import annotations

from finetune_api.exit_codes import ExitCode
from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.wording import counted
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
    rows = enough_rows(given, *_why_so_few(given))
    if rows["test"] < _TEST_ROWS_WANTED:
        message = (
            f"test has {counted(rows['test'], 'row')}; below {_TEST_ROWS_WANTED} only large differences can be told "
            "from chance: add rows, or give data.test.source"
        )
        return [Remark("sizes", "warning", message, rows["test"])]
    return []


_DROPPED = "SELECT count(*) FROM rows WHERE split IS NULL AND came_from NOT IN ('replay', 'out_of_domain')"
_LARGEST_CLUSTER = """
SELECT count(*) FROM rows WHERE split IN ('train', 'validation', 'test') AND cluster IS NOT NULL
GROUP BY cluster ORDER BY 1 DESC LIMIT 1
"""


def _why_so_few(given: Given) -> tuple[str, str]:
    """What took rows or keeps them in one split, and how to change that; empty when nothing did."""
    database = given.store.database
    (dropped,) = database.execute(_DROPPED).fetchone()
    (largest,) = database.execute(_LARGEST_CLUSTER).fetchone() or (0,)
    rows = sum(given.count(split) for split in ("train", "validation", "test"))
    why = [f"the checks dropped {counted(dropped, 'row')}, such as duplicates"] if dropped else []
    if not largest > 1 or 2 * largest <= rows:
        return "; ".join(why), ""
    why.append(f"{largest} of {rows} rows are near-duplicates of each other (or one group) and stay in one split")
    return "; ".join(why), "vary the rows, or group by something finer"


def enough_rows(given: Given, removed: str = "", keep: str = "") -> dict[str, int]:
    """Rows by split, when there are enough.

    Args:
        given: the rows.
        removed: what removed rows since they were last counted, for the message; empty = not known.
        keep: how to keep those rows, for the hint; empty = add others.

    Raises:
        StageError: INVALID_DATA for fewer train rows than data.checks.minimumRows, or an empty split.
    """
    rows = {split: given.count(split) for split in ("train", "validation", "test")}
    data = given.spec.data
    usable = counted(sum(rows.values()), "usable row")
    counts = f"{usable}: {rows['train']} train, {rows['validation']} validation, {rows['test']} test"
    also = f"; {removed}" if removed else ""
    if rows["train"] < data.checks.minimum_rows:
        raise StageError(
            ExitCode.INVALID_DATA,
            f"{counts}; data.checks.minimumRows asks for {data.checks.minimum_rows} train rows{also}",
            f"{keep or 'add rows'} (below 50 a prompt with examples usually beats tuning), or lower "
            "data.checks.minimumRows",
        )
    sources = {"validation": data.validation.source, "test": data.test.source}
    for split, source in sources.items():
        if rows[split]:
            continue
        add = (
            f"add rows that are not near-duplicates of each other, or give data.{split}.source"
            if source is None
            else f"the rows of data.{split}.source were dropped (leaks: they are also in another split): give others"
        )
        raise StageError(ExitCode.INVALID_DATA, f"{counts}; split {split} is empty{also}", keep or add)
    return rows
