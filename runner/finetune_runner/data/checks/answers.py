"""Answers against the task: they must satisfy its schema and have its label."""

from __future__ import annotations

import json

from jsonschema.protocols import Validator

from finetune_api.job.evaluation import Task
from finetune_api.job.spec import FineTuneJobSpec
from finetune_runner.data.checking import TASK_SPLITS, Found, Given, Mode, Phase, Remark, judged, mode_of
from finetune_runner.data.json_path import value_at
from finetune_runner.data.records import BadRow, BadRows
from finetune_runner.json_schema import problem_with, schema_validator

PHASE: Phase = "rows"
ORDER = 20
_HINT = "correct or remove these rows, or change evaluation.task"


def mode(spec: FineTuneJobSpec) -> Mode:
    """As data.checks.answers says, when the task says what an answer looks like."""
    task = spec.evaluation.task
    return mode_of(spec.data.checks.answers) if task.schema_ is not None or task.label_path is not None else "off"


def check(given: Given) -> list[Remark]:
    """Refuse, report or drop answers that no correct model could give.

    Raises:
        StageError: INVALID_DATA in mode fail, INVALID_SPEC when the schema is none.
    """
    task = given.spec.evaluation.task
    validator = schema_validator(task.schema_) if task.schema_ is not None else None
    bad, found = BadRows(), Found()
    for example in given.rows(*TASK_SPLITS):
        wrong = wrong_answer(example.row.said, task, validator) if example.row.wanted else ""
        if wrong:
            bad.add(BadRow(example.origin, "", wrong, _HINT))
            found.add(example, f"({wrong[:100]})")
            if given.mode == "fix":
                given.drop(example)
    if given.mode == "fail":
        bad.raise_if_any("answers against evaluation.task")
    return judged("answers", given, found, what="[answer breaks|answers break] evaluation.task", hint=_HINT)


def wrong_answer(answer: str, task: Task, validator: Validator | None) -> str:
    """What is wrong with an expected answer, without a word of it: it goes to status. Empty when nothing is."""
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError) as error:
        return f"the answer is not JSON ({error})"
    if validator is not None:
        problem = problem_with(validator, value)
        if problem:
            return f"the answer does not satisfy the schema at {problem}"
    if task.label_path is not None and value_at(value, task.label_path) is None:
        return f"the answer has nothing at labelPath {task.label_path}"
    return ""
