"""Lengths: what training.maxLength cuts or cannot hold, and what the model's context cannot hold."""

from __future__ import annotations

from dataclasses import replace

from finetune_api.exit_codes import ExitCode
from finetune_api.job.spec import FineTuneJobSpec
from finetune_runner.data.checking import Found, Given, Mode, Phase, Remark, judged
from finetune_runner.errors import StageError

PHASE: Phase = "tokens"
ORDER = 10
_ANSWERED = ("validation", "test")


def mode(spec: FineTuneJobSpec) -> Mode:
    """As data.overlong says: truncate warns, drop drops, fail fails."""
    modes: dict[str, Mode] = {"truncate": "warn", "drop": "fix", "fail": "fail"}
    return modes[spec.data.overlong]


def check(given: Given) -> list[Remark]:
    """Report, drop or refuse examples longer than training.maxLength.

    An answer that does not fit is dropped even where others are cut: it would lose its beginning.

    Raises:
        StageError: INVALID_DATA in mode fail; INVALID_SPEC when cut examples still exceed the model's context.
    """
    most = given.spec.training.max_length
    cut, unfit = Found(), Found()
    longest = 0
    for example in given.rows(*given.store.splits()):
        assert example.length is not None, "phase tokens has lengths"  # noqa: S101
        fits = example.length.answer <= most
        if example.length.total > most:
            (cut if fits else unfit).add(example)
            if given.mode == "fix" or not fits:
                given.drop(example)
                continue
        longest = max(longest, min(example.length.total, most))
    if given.context_length and longest > given.context_length:
        raise StageError(
            ExitCode.INVALID_SPEC,
            f"an example has {longest} tokens, the model's context {given.context_length}, training.maxLength {most}",
            f"set training.maxLength: {given.context_length} or less (the left of longer prompts is cut)",
        )
    unanswerable = _without_room(given)
    dropping = given if given.mode == "fail" else replace(given, mode="fix")
    return [
        *(
            replace(remark, severity="warning")
            for remark in judged(
                "lengths",
                dropping,
                unfit,
                what=f"[row whose answer does|rows whose answers do] not fit into training.maxLength {most}",
                hint="raise training.maxLength, shorten the answers, or set data.overlong: drop",
            )
        ),
        *judged(
            "lengths",
            given,
            cut,
            what=f"[example is|examples are] longer than training.maxLength {most}"
            + (" and [loses the left of its|lose the left of their] prompt" if given.mode == "warn" else ""),
            hint="raise training.maxLength to keep them whole",
        ),
        *unanswerable,
    ]


def _without_room(given: Given) -> list[Remark]:
    """Prompts that are longer than what the longest answer leaves of the model's context.

    Raises StageError (INVALID_SPEC) when it leaves nothing.
    """
    new = given.spec.evaluation.max_new_tokens
    if not given.context_length:
        return []
    if new >= given.context_length:
        raise StageError(
            ExitCode.INVALID_SPEC,
            f"evaluation.maxNewTokens {new} leaves no room for a prompt in the model's context of "
            f"{given.context_length}",
            "set evaluation.maxNewTokens to what the longest answer needs",
        )
    cut = Found()
    for example in given.rows(*_ANSWERED):
        if example.length is not None and example.length.total - example.length.answer > given.context_length - new:
            cut.add(example)
    return judged(
        "lengths",
        replace(given, mode="warn"),
        cut,
        what="[prompt is|prompts are] cut from the left before [it is|they are] answered: the model's context of "
        f"{given.context_length} less evaluation.maxNewTokens {new} does not hold [it|them]",
        hint="lower evaluation.maxNewTokens to what the longest answer needs",
    )
