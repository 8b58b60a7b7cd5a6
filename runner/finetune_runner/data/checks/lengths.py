"""Lengths: what training.maxLength cuts, and what the model's context cannot hold."""

from __future__ import annotations

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import Finding
from finetune_runner.data.checking import Given, Phase, Seen, listed
from finetune_runner.errors import StageError

PHASE: Phase = "tokens"
ORDER = 10


def check(given: Given) -> Seen:
    """Report examples that are cut. Raises StageError (INVALID_SPEC) when cut ones still exceed the model's context."""
    most = given.spec.training.max_length
    prompts_cut: list[str] = []
    answers_cut: list[str] = []
    longest = 0
    for split, lengths in given.lengths.items():
        for example, length in zip(given.splits[split], lengths, strict=True):
            longest = max(longest, min(length.total, most))
            if length.answer > most:
                answers_cut.append(f"{split} {example.origin}")
            elif length.total > most:
                prompts_cut.append(f"{split} {example.origin}")
    if given.context_length and longest > given.context_length:
        raise StageError(
            ExitCode.INVALID_SPEC,
            f"an example has {longest} tokens, the model's context {given.context_length}, training.maxLength {most}",
            f"set training.maxLength: {given.context_length} or less (the left of longer prompts is cut)",
        )
    findings = []
    if answers_cut:
        message = (
            f"{len(answers_cut)} answers alone are longer than training.maxLength {most} and lose their beginning: "
            f"{listed(answers_cut, 3)}; raise training.maxLength or remove them"
        )
        findings.append(Finding(check="lengths", severity="warning", message=message[:512], rows=len(answers_cut)))
    if prompts_cut:
        message = (
            f"{len(prompts_cut)} examples are longer than training.maxLength {most} and lose the left of their prompt: "
            f"{listed(prompts_cut, 3)}; raise training.maxLength to keep them whole"
        )
        findings.append(Finding(check="lengths", severity="warning", message=message[:512], rows=len(prompts_cut)))
    return Seen(findings)
