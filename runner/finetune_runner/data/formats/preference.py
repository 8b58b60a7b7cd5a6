"""preference: a better and a worse answer (Rafailov et al. 2023), or one answer that is wanted or not (KTO).

The layouts are those of TRL: `prompt`, `chosen`, `rejected` as text or as lists of messages, where the lists may begin
with the prompt (then no `prompt` is needed); and `prompt`, `completion`, `label` for rows that are not paired. Without
a prompt `chosen` and `rejected` may be whole transcripts: what they share up to the last answer is the prompt.
"""

from __future__ import annotations

from typing import Any

from finetune_api.job.data import Columns
from finetune_api.job.judgement import judgement_of, says_true_or_false
from finetune_runner.data.fields import type_name
from finetune_runner.data.records import RowError
from finetune_runner.data.rows import Parsed
from finetune_runner.data.sides import asked_and_answered, read_as

NAME = "preference"
SHAPE = "prompt, chosen, rejected; or prompt, completion, label (true or false)"
RANK = 0
_SHOWN = 12
"""Characters of a judgement that are quoted: a longer text is none, and may be anything."""


def matches(value: dict[str, Any], columns: Columns) -> bool:
    """Whether a row looks like this format: a pair of answers, or one with a judgement that is true or false."""
    if (columns.chosen or "chosen") in value and (columns.rejected or "rejected") in value:
        return True
    judgement = value.get(columns.label or "label")
    # A column of this name is often a class. Where columns.label or the objective says what it is, a number will do.
    return (
        (says_true_or_false(judgement) or (columns.label is not None and columns.label in value))
        and (columns.prompt or "prompt") in value
        and (columns.completion or "completion") in value
    )


def parse(value: dict[str, Any], columns: Columns) -> Parsed:
    """The row's conversation with the better answer, and the worse one or the judgement. Raises RowError."""
    chosen, rejected = columns.chosen or "chosen", columns.rejected or "rejected"
    label, completion = columns.label or "label", columns.completion or "completion"
    if chosen not in value and rejected not in value and completion in value:
        if label not in value:
            raise RowError(f"has `{completion}` but no `{label}`", f"add `{label}`: true where the answer is wanted")
        prompt, answer = asked_and_answered(value, completion, columns)
        said = read_as(value, completion, columns)
        return Parsed((*prompt, answer), label=_judgement(value[label], label), read_as=said)
    better_prompt, better = asked_and_answered(value, chosen, columns)
    worse_prompt, worse = asked_and_answered(value, rejected, columns)
    if better_prompt != worse_prompt:
        raise RowError(
            f"`{chosen}` and `{rejected}` answer different prompts",
            f"let `{chosen}` and `{rejected}` differ in the last message only",
        )
    if better["content"].strip() == worse["content"].strip():
        raise RowError(f"`{chosen}` and `{rejected}` are the same", "remove the row: it prefers nothing")
    said = read_as(value, chosen, columns)
    return Parsed((*better_prompt, better), rejected=worse["content"], read_as=said)


def _judgement(judgement: object, column: str) -> bool:
    wanted = judgement_of(judgement)
    if wanted is not None:
        return wanted
    short = isinstance(judgement, str) and len(judgement) <= _SHOWN
    shown = f"{judgement!r}" if short else "a text" if isinstance(judgement, str) else type_name(judgement)
    raise RowError(
        f"`{column}` is {judgement if isinstance(judgement, int) else shown}, neither true nor false",
        "write true where the answer is wanted, else false",
    )
