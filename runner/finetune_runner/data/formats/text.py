"""text: plain text that goes on, without prompt and answer; learned as a whole."""

from __future__ import annotations

from typing import Any

from finetune_api.job.data import Columns
from finetune_runner.data.fields import text_field
from finetune_runner.data.rows import Message

NAME = "text"
SHAPE = "text"
RANK = 4


def matches(value: dict[str, Any], columns: Columns) -> bool:
    """Whether a row looks like this format."""
    return isinstance(value.get(columns.text or "text"), str)


def parse(value: dict[str, Any], columns: Columns) -> list[Message]:
    """The text as an answer without a prompt. Raises RowError."""
    return [{"role": "assistant", "content": text_field(value, columns.text or "text")}]
