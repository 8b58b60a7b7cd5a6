"""training.bestBy: metric needs validation rows that can be answered: a prompt, and an answer that is wanted."""

from __future__ import annotations

from finetune_api.exit_codes import ExitCode
from finetune_api.job.spec import FineTuneJobSpec
from finetune_runner.data.checking import Given, Mode, Phase, Remark
from finetune_runner.errors import StageError

PHASE: Phase = "splits"
ORDER = 40


def mode(spec: FineTuneJobSpec) -> Mode:
    """Always runs where a metric of answers decides."""
    decides = spec.training.best_by == "metric" and spec.evaluation.metrics[0].name != "loss"
    return "fail" if decides else "off"


def check(given: Given) -> list[Remark]:
    """Raise StageError (INVALID_DATA) when no row can be answered: every evaluation would count as the worst."""
    if any(example.row.prompt and example.row.wanted for example in given.rows("validation")):
        return []
    raise StageError(
        ExitCode.INVALID_DATA,
        f"training.bestBy: metric asks for {given.spec.evaluation.metrics[0].name} of answers, and no validation row "
        "has a prompt and a wanted answer",
        "set training.bestBy: validationLoss, or give data.validation.source rows with wanted answers",
    )
