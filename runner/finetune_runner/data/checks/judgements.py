"""Judged answers for kto: it learns from the difference, so both wanted and unwanted ones must be in train."""

from __future__ import annotations

from finetune_api.exit_codes import ExitCode
from finetune_api.job.spec import FineTuneJobSpec
from finetune_runner.data.checking import Given, Mode, Phase, Remark
from finetune_runner.errors import StageError

PHASE: Phase = "splits"
ORDER = 30


def mode(spec: FineTuneJobSpec) -> Mode:
    """Always runs for kto."""
    return "fail" if spec.method.objective == "kto" else "off"


def check(given: Given) -> list[Remark]:
    """Tell how many answers of train are wanted. Raises StageError (INVALID_DATA) when all are, or none is.

    A pair counts as one of each.
    """
    wanted = unwanted = 0
    for example in given.rows("train"):
        wanted += example.row.wanted
        unwanted += example.row.label is not True
    message = f"train has {wanted} wanted and {unwanted} unwanted answers"
    if not wanted or not unwanted:
        missing = "label: true" if not wanted else "label: false"
        raise StageError(
            ExitCode.INVALID_DATA,
            f"{message}; method.objective kto learns from the difference",
            f"add rows with {missing}, or learn from good answers alone with method.objective: sft",
        )
    return [Remark("judgements", "info", message, wanted + unwanted, facts={"wanted": wanted, "unwanted": unwanted})]
