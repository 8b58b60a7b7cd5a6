"""Train rows against the breadth of the task: how many the sources ask for.

A class of a classification: about 100 rows (OpenAI, guide to fine-tuning GPT-3, 2022). An answer of a given form, such
as an extraction: about 500 (same guide, conditional generation). Free answers: 1,000 (Zhou et al. 2023, LIMA: 1,000
curated rows align a 65B model). The floor below these, data.checks.minimumRows, is 50 (OpenAI, guide to supervised
fine-tuning: start with 50, improvements from 50 to 100 rows).
"""

from __future__ import annotations

from finetune_api.exit_codes import ExitCode
from finetune_api.job.evaluation import Task
from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.wording import counted
from finetune_runner.data.checking import Given, Mode, Phase, Remark, mode_of
from finetune_runner.data.labels import label_of, look_like_free_text
from finetune_runner.errors import StageError

PHASE: Phase = "splits"
ORDER = 25

ROWS_PER_CLASS = 100
ROWS_OF_A_GIVEN_FORM = 500
ROWS_OF_FREE_TEXT = 1000
_CLASSES_MOST = 200
"""More labels than this are free text, whatever the task says."""


def mode(spec: FineTuneJobSpec) -> Mode:
    """As data.checks.size says."""
    return mode_of(spec.data.checks.size)


def wanted_rows(task: Task, classes: int, rows: int | None = None) -> tuple[int, str]:
    """Train rows that the sources ask for, and why.

    Args:
        task: what the model is asked to do.
        classes: different labels in train; only for a classification.
        rows: that they are counted in, to tell classes from free text; None = they are classes.
    """
    free = rows is not None and look_like_free_text(classes, rows)
    if task.type == "classification" and 0 < classes <= _CLASSES_MOST and not free:
        return ROWS_PER_CLASS * classes, f"{ROWS_PER_CLASS} for each of {counted(classes, '[class|classes]')}"
    if task.type == "generation" and task.schema_ is None:
        return ROWS_OF_FREE_TEXT, "the usual number for free answers"
    return ROWS_OF_A_GIVEN_FORM, "the usual number for answers of a given form"


def check(given: Given) -> list[Remark]:
    """Report fewer rows than the task's breadth asks for. Raises StageError (INVALID_DATA) in mode fail."""
    task = given.spec.evaluation.task
    labels: set[str] = set()
    if task.type == "classification":
        for example in given.rows("train"):
            if example.row.wanted:
                labels.add(label_of(example.row.said, task))
            if len(labels) > _CLASSES_MOST:
                break
    rows = given.count("train")
    wanted, why = wanted_rows(task, len(labels), rows)
    facts = {"trainRows": rows, "wantedRows": wanted, "labels": len(labels)}
    if rows >= wanted:
        return [Remark("size", "info", f"{counted(rows, 'train row')}; {wanted} are wanted: {why}", rows, facts=facts)]
    message = f"{counted(rows, 'train row')}; {wanted} are wanted: {why}"
    hint = "add rows, or narrow the task (docs/data.md)"
    if given.mode == "fail":
        raise StageError(ExitCode.INVALID_DATA, message, hint)
    return [Remark("size", "warning", f"{message}; {hint}", rows, facts=facts)]
