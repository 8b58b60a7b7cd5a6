"""Classes of a classification: one class alone teaches nothing, rare ones are hard to judge."""

from __future__ import annotations

from collections import Counter

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import Finding
from finetune_runner.data.checking import TASK_SPLITS, Given, Phase, Seen
from finetune_runner.data.labels import label_of
from finetune_runner.errors import StageError

PHASE: Phase = "rows"
ORDER = 50

_RARE_ROWS = 10
_DOMINANT_SHARE = 0.8
_FREE_TEXT_SHARE = 0.5
_FREE_TEXT_FROM = 20


def check(given: Given) -> Seen:
    """Report the balance of the classes. Raises StageError (INVALID_DATA) for one class alone when f1 is asked for."""
    task = given.spec.evaluation.task
    if task.type != "classification":
        return Seen()
    counts = Counter(
        label_of(example.row.answer, task) for split in TASK_SPLITS for example in given.splits.get(split, [])
    )
    rows = counts.total()
    if not rows:
        return Seen()
    if len(counts) == 1:
        message = f"all {rows} rows have the class {next(iter(counts))[:80]!r}"
        fix = "add rows of the other classes, or check evaluation.task.labelPath"
        if any(metric.name == "f1" for metric in given.spec.evaluation.metrics):
            raise StageError(ExitCode.INVALID_DATA, f"{message}: there is nothing to tell apart", fix)
        return Seen([Finding(check="balance", severity="warning", message=f"{message}; {fix}", rows=rows)])
    if len(counts) > max(_FREE_TEXT_FROM, _FREE_TEXT_SHARE * rows):
        message = (
            f"{len(counts)} different labels in {rows} rows look like free text; set evaluation.task.labelPath, or "
            "task.type: generation"
        )
        return Seen([Finding(check="balance", severity="warning", message=message, rows=rows)])
    shares = ", ".join(f"{label[:40]} {count}" for label, count in counts.most_common(12))
    rare = [label for label, count in counts.items() if count < _RARE_ROWS]
    label, most = counts.most_common(1)[0]
    if most > _DOMINANT_SHARE * rows:
        message = f"{label[:80]!r} is {100 * most / rows:.0f} % of all rows ({shares}); add rows of the other classes"
    elif rare:
        message = f"classes with fewer than {_RARE_ROWS} rows: {', '.join(rare)[:200]} ({shares}); add rows of them"
    else:
        return Seen([Finding(check="balance", severity="info", message=f"classes: {shares}"[:512], rows=rows)])
    return Seen([Finding(check="balance", severity="warning", message=message[:512], rows=rows)])
