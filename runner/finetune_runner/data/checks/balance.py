"""Classes of a classification: one class alone teaches nothing, rare ones are hard to judge, spellings split one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from finetune_api.exit_codes import ExitCode
from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.wording import agreeing, counted
from finetune_runner.data.checking import TASK_SPLITS, Given, Mode, Phase, Remark, listed, mode_of
from finetune_runner.data.labels import LABELS_KEPT, Classes, label_of, look_like_free_text
from finetune_runner.errors import StageError

PHASE: Phase = "rows"
ORDER = 50

_RARE_ROWS = 10
_DOMINANT_SHARE = 0.8
_LABELS_SHOWN = 40


def mode(spec: FineTuneJobSpec) -> Mode:
    """As data.checks.balance says, for classifications."""
    return mode_of(spec.data.checks.balance) if spec.evaluation.task.type == "classification" else "off"


def check(given: Given) -> list[Remark]:
    """Report the balance of the classes.

    Raises:
        StageError: INVALID_DATA for one class alone when f1 is asked for; in mode fail for rare or dominant classes,
            and for classes that differ in their spelling only.
    """
    task = given.spec.evaluation.task
    classes = Classes()
    for example in given.rows(*TASK_SPLITS):
        if example.row.wanted:
            classes.add(label_of(example.row.said, task), example.origin)
    counts, rows = classes.counts, classes.rows
    if not rows:
        return []
    if look_like_free_text(len(counts), rows):
        many = f"more than {LABELS_KEPT}" if len(counts) > LABELS_KEPT else str(len(counts))
        message = (
            f"{many} different labels in {rows} rows look like free text; set evaluation.task.labelPath, or "
            "task.type: generation"
        )
        return [Remark("balance", "warning", message, rows)]
    names = classes.names(given.spec)
    if len(counts) == 1:
        message = (
            f"{agreeing(rows, f'[the only row has|all {rows} rows have]')} one class ({names[next(iter(counts))]})"
        )
        fix = "add rows of the other classes, or check evaluation.task.labelPath"
        if any(metric.name == "f1" for metric in given.spec.evaluation.metrics):
            raise StageError(ExitCode.INVALID_DATA, f"{message}: there is nothing to tell apart", fix)
        return [Remark("balance", "warning", f"{message}; {fix}", rows)]
    facts = {"classes": {names[key]: count for key, count in counts.most_common(_LABELS_SHOWN)}}
    return [*_spelling(given, classes, names), _shares(given, classes, names, facts)]


def _shares(given: Given, classes: Classes, names: Mapping[str, str], facts: dict[str, dict[str, int]]) -> Remark:
    counts, rows = classes.counts, classes.rows
    shares = ", ".join(f"{names[key]} {count}" for key, count in counts.most_common(12))
    rare = [key for key, count in counts.items() if count < _RARE_ROWS]
    largest, most = counts.most_common(1)[0]
    if most > _DOMINANT_SHARE * rows:
        message = f"{names[largest]} is {100 * most / rows:.0f} % of all rows ({shares}); add rows of the other classes"
    elif rare:
        told = listed([names[key] for key in rare], 5)
        few = counted(len(rare), "[class has|classes have]")
        message = f"{few} fewer than {_RARE_ROWS} rows: {told} ({shares}); add rows of them"
    else:
        message = f"classes: {shares}"
    severity: Literal["info", "warning"] = "warning" if rare or most > _DOMINANT_SHARE * rows else "info"
    if given.mode == "fail" and severity == "warning":
        raise StageError(
            ExitCode.INVALID_DATA, message, "add rows of the rare classes, or set data.checks.balance: warn"
        )
    return Remark("balance", severity, message, rows, facts=facts)


def _spelling(given: Given, classes: Classes, names: Mapping[str, str]) -> list[Remark]:
    pairs = classes.spelled_alike()
    if not pairs:
        return []
    rows = sum(classes.counts[key] for key, _ in pairs)
    told = listed([f"{names[key]} against {names[other]}" for key, other in pairs], 3)
    message = (
        f"{counted(len(pairs), '[class|classes]')} ({counted(rows, 'row')}) {agreeing(len(pairs), '[is|are]')} spelled "
        f"like another but for case, white space or punctuation: {told}"
    )
    hint = "write each class in one way"
    positions = [classes.first[key] for key, _ in pairs][:5]
    if given.mode == "fail":
        raise StageError(ExitCode.INVALID_DATA, message, hint, positions[0])
    return [Remark("balance", "warning", f"{message}; {hint}", rows, positions)]
