"""Lengths: what training.maxLength cuts or cannot hold, and what the model's context cannot hold."""

from __future__ import annotations

from dataclasses import replace

from finetune_api.exit_codes import ExitCode
from finetune_api.job.spec import FineTuneJobSpec
from finetune_runner.data.checking import Found, Given, Mode, Phase, Remark, judged
from finetune_runner.errors import StageError

PHASE: Phase = "tokens"
ORDER = 10


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
    ]
