"""The class of an expected answer."""

from __future__ import annotations

import json

from finetune_api.job.evaluation import Task
from finetune_runner.data.json_path import value_at


def label_of(answer: str, task: Task) -> str:
    """The label: the value at the task's labelPath, else (and where the answer is not JSON) the whole answer."""
    if task.label_path is None:
        return answer.strip()
    try:
        parsed = json.loads(answer)
    except (ValueError, RecursionError):
        return answer.strip()
    value = value_at(parsed, task.label_path)
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
