"""Lengths: what training.maxLength cuts, and what the model's context cannot hold."""

from __future__ import annotations

from finetune_api.exit_codes import ExitCode
from finetune_api.job.spec import FineTuneJobSpec
from finetune_runner.data.checking import Found, Given, Mode, Phase, Remark, judged
from finetune_runner.errors import StageError

PHASE: Phase = "tokens"
ORDER = 10


def mode(spec: FineTuneJobSpec) -> Mode:
    """Always runs."""
    return "warn"


def check(given: Given) -> list[Remark]:
    """Report examples that are cut. Raises StageError (INVALID_SPEC) when cut ones still exceed the model's context."""
    most = given.spec.training.max_length
    prompts, answers = Found(), Found()
    longest = 0
    for example in given.rows(*given.store.splits()):
        assert example.length is not None, "phase tokens has lengths"  # noqa: S101
        longest = max(longest, min(example.length.total, most))
        if example.length.answer > most:
            answers.add(example)
        elif example.length.total > most:
            prompts.add(example)
    if given.context_length and longest > given.context_length:
        raise StageError(
            ExitCode.INVALID_SPEC,
            f"an example has {longest} tokens, the model's context {given.context_length}, training.maxLength {most}",
            f"set training.maxLength: {given.context_length} or less (the left of longer prompts is cut)",
        )
    return [
        *judged(
            "lengths",
            given,
            answers,
            what=f"answers alone are longer than training.maxLength {most} and lose their beginning",
            hint="raise training.maxLength or remove them",
        ),
        *judged(
            "lengths",
            given,
            prompts,
            what=f"examples are longer than training.maxLength {most} and lose the left of their prompt",
            hint="raise training.maxLength to keep them whole",
        ),
    ]
