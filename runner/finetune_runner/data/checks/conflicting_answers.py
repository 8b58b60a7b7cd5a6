"""The same input with different answers: noise that no model can learn, and a ceiling for every metric."""

from __future__ import annotations

from finetune_api.exit_codes import ExitCode
from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.wording import counted
from finetune_runner.data.checking import TASK_SPLITS, Given, Mode, Phase, Remark, listed, mode_of
from finetune_runner.data.rows import Row
from finetune_runner.data.shingles import input_text, normal_form, system_form
from finetune_runner.errors import StageError
from finetune_runner.reasoning import without_reasoning

PHASE: Phase = "rows"
ORDER = 30

_SHOWN = 5


def mode(spec: FineTuneJobSpec) -> Mode:
    """As data.checks.conflictingAnswers says."""
    return mode_of(spec.data.checks.conflicting_answers)


def check(given: Given) -> list[Remark]:
    """Report inputs that have several answers, over all splits of the task; in mode fix all their rows are dropped.

    The same text under another system message is another input. Where answers are compared or judged the same input has
    several on purpose: there it is the same two answers compared both ways, or one answer judged both ways.

    Raises:
        StageError: INVALID_DATA in mode fail.
    """
    inputs = rows = 0
    shown: list[str] = []
    with given.groups() as groups:
        for example in given.rows(*TASK_SPLITS):
            if example.row.kind != "text":
                key, said = _decided(example.row)
                groups.add(key, example.number, said)
        for group in groups.several(tags=True):
            inputs += 1
            rows += group.rows
            if len(shown) < _SHOWN:
                first, other = (given.store.example(number) for number in groups.first_of_tags(group.first))
                shown.append(f"{first.origin} against {other.origin}")
        if given.mode == "fix":
            for number in groups.numbers_of_several(tags=True):
                given.drop(given.store.example(number))
    if not inputs:
        return []
    several = "different answers" if given.spec.method.objective == "sft" else "the same answers judged in two ways"
    what = f"{counted(inputs, f'[input has|inputs have] {several}')} ({counted(rows, 'row')}"
    where, hint = listed(shown, 3, inputs), "decide on one answer each"
    if given.mode == "fail":
        raise StageError(ExitCode.INVALID_DATA, f"{what}): {where}", hint, shown[0])
    if given.mode == "fix":
        return [Remark("conflictingAnswers", "info", f"{what}, dropped): {where}", rows, shown)]
    return [Remark("conflictingAnswers", "warning", f"{what}): {where}; {hint}", rows, shown, facts={"inputs": inputs})]


def _decided(row: Row) -> tuple[str, str]:
    """What a row decides about, and how."""
    asked = f"{system_form(row)}\0{normal_form(input_text(row))}"
    said = row.said.strip()
    if row.rejected is not None:
        return "\0".join((asked, *sorted((said, without_reasoning(row.rejected).strip())))), said
    if row.label is not None:
        return f"{asked}\0{said}", str(row.label)
    return asked, said
