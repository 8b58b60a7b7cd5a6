"""promptCompletion: a prompt and its completion, each text or messages, optionally a system prompt."""

from __future__ import annotations

from typing import Any

from finetune_api.job.data import Columns
from finetune_runner.data.rows import Parsed
from finetune_runner.data.sides import asked_and_answered, read_as

NAME = "promptCompletion"
SHAPE = "prompt, completion"
RANK = 3


def _names(columns: Columns) -> tuple[str, str]:
    return columns.prompt or "prompt", columns.completion or "completion"


def matches(value: dict[str, Any], columns: Columns) -> bool:
    """Whether a row looks like this format."""
    return _names(columns)[0] in value and _names(columns)[1] in value


def parse(value: dict[str, Any], columns: Columns) -> Parsed:
    """The row's messages. Raises RowError."""
    completion = _names(columns)[1]
    prompt, answer = asked_and_answered(value, completion, columns)
    return Parsed((*prompt, answer), read_as=read_as(value, completion, columns))
