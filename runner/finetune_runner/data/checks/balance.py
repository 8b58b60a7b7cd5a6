"""Classes of a classification: one class alone teaches nothing, rare ones are hard to judge."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from finetune_api.exit_codes import ExitCode
from finetune_api.job.spec import FineTuneJobSpec
from finetune_runner.data.checking import TASK_SPLITS, Given, Mode, Phase, Remark, mode_of
from finetune_runner.data.labels import label_of
from finetune_runner.errors import StageError

PHASE: Phase = "rows"
ORDER = 50

_RARE_ROWS = 10
_DOMINANT_SHARE = 0.8
_FREE_TEXT_SHARE = 0.5
_FREE_TEXT_FROM = 20
_LABELS_KEPT = 5000  # more are free text whatever the rows: no classification has them
_LABELS_SHOWN = 40


def mode(spec: FineTuneJobSpec) -> Mode:
    """As data.checks.balance says, for classifications."""
    return mode_of(spec.data.checks.balance) if spec.evaluation.task.type == "classification" else "off"


def check(given: Given) -> list[Remark]:
    """Report the balance of the classes.

    Raises:
        StageError: INVALID_DATA for one class alone when f1 is asked for; in mode fail for rare or dominant classes.
    """
    task = given.spec.evaluation.task
    counts: Counter[str] = Counter()
    rows = 0
    for example in given.rows(*TASK_SPLITS):
        rows += 1
        if len(counts) <= _LABELS_KEPT:
            counts[label_of(example.row.answer, task)] += 1
    if not rows:
        return []
    if len(counts) == 1:
        message = f"all {rows} rows have the class {next(iter(counts))[:80]!r}"
        fix = "add rows of the other classes, or check evaluation.task.labelPath"
        if any(metric.name == "f1" for metric in given.spec.evaluation.metrics):
            raise StageError(ExitCode.INVALID_DATA, f"{message}: there is nothing to tell apart", fix)
        return [Remark("balance", "warning", f"{message}; {fix}", rows)]
    if len(counts) > min(max(_FREE_TEXT_FROM, _FREE_TEXT_SHARE * rows), _LABELS_KEPT):
        many = f"more than {_LABELS_KEPT}" if len(counts) > _LABELS_KEPT else str(len(counts))
        message = (
            f"{many} different labels in {rows} rows look like free text; set evaluation.task.labelPath, or "
            "task.type: generation"
        )
        return [Remark("balance", "warning", message, rows)]
    shares = ", ".join(f"{label[:40]} {count}" for label, count in counts.most_common(12))
    rare = [label for label, count in counts.items() if count < _RARE_ROWS]
    label, most = counts.most_common(1)[0]
    if most > _DOMINANT_SHARE * rows:
        message = f"{label[:80]!r} is {100 * most / rows:.0f} % of all rows ({shares}); add rows of the other classes"
    elif rare:
        message = f"classes with fewer than {_RARE_ROWS} rows: {', '.join(rare)[:200]} ({shares}); add rows of them"
    else:
        message = f"classes: {shares}"
    severity: Literal["info", "warning"] = "warning" if rare or most > _DOMINANT_SHARE * rows else "info"
    if given.mode == "fail" and severity == "warning":
        raise StageError(
            ExitCode.INVALID_DATA, message, "add rows of the rare classes, or set data.checks.balance: warn"
        )
    classes = {label[:80]: count for label, count in counts.most_common(_LABELS_SHOWN)}
    return [Remark("balance", severity, message, rows, facts={"classes": classes})]
