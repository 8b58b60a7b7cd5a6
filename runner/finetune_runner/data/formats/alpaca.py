"""alpaca: instruction, input (may be empty) and output (Taori et al. 2023)."""

from __future__ import annotations

from typing import Any

from finetune_api.job.data import Columns
from finetune_runner.data.fields import answer_field, conversation, optional_field, text_field
from finetune_runner.data.rows import Message

NAME = "alpaca"
SHAPE = "instruction, input, output"
RANK = 2


def _names(columns: Columns) -> tuple[str, str]:
    return columns.prompt or "instruction", columns.completion or "output"


def matches(value: dict[str, Any], columns: Columns) -> bool:
    """Whether a row looks like this format."""
    return "instruction" in value and _names(columns)[1] in value


def parse(value: dict[str, Any], columns: Columns) -> list[Message]:
    """The row's messages: the input follows the instruction after an empty line. Raises RowError."""
    instruction, output = _names(columns)
    more = optional_field(value, "input")
    prompt = text_field(value, instruction)
    return conversation(
        f"{prompt}\n\n{more}" if more.strip() else prompt,
        answer_field(value, output),
        optional_field(value, columns.system or "system"),
    )
