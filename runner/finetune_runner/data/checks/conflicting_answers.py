"""The same input with different answers: noise that no model can learn, and a ceiling for every metric."""

from __future__ import annotations

from finetune_api.job.spec import FineTuneJobSpec
from finetune_runner.data.checking import TASK_SPLITS, Given, Mode, Phase, Remark, listed
from finetune_runner.data.near_duplicates import input_text, normal_form

PHASE: Phase = "rows"
ORDER = 30

_SHOWN = 5


def mode(spec: FineTuneJobSpec) -> Mode:
    """Always runs."""
    return "warn"


def check(given: Given) -> list[Remark]:
    """Report inputs that have several answers, over all splits of the task."""
    inputs = rows = 0
    shown: list[str] = []
    with given.groups() as groups:
        for example in given.rows(*TASK_SPLITS):
            groups.add(normal_form(input_text(example.row)), example.number, example.row.answer.strip())
        for group in groups.several(tags=True):
            inputs += 1
            rows += group.rows
            if len(shown) < _SHOWN:
                first, other = (given.store.example(number) for number in groups.first_of_tags(group.first))
                shown.append(f"{first.origin} against {other.origin}")
    if not inputs:
        return []
    message = (
        f"{inputs} inputs have different answers ({rows} rows): {listed(shown, 3, inputs)}; decide on one answer each"
    )
    return [Remark("conflictingAnswers", "warning", message, rows, shown, facts={"inputs": inputs})]
