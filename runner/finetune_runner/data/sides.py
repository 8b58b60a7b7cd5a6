"""Prompt and answer in columns of their own, each as text or as a list of messages (the layouts of TRL)."""

from __future__ import annotations

from typing import Any

from finetune_api.job.data import Columns
from finetune_runner.data.fields import answer_field, optional_field, text_field
from finetune_runner.data.records import RowError
from finetune_runner.data.rows import Message
from finetune_runner.data.turns import check_conversation, check_system_first, is_turns, turns


def asked_and_answered(value: dict[str, Any], column: str, columns: Columns) -> tuple[list[Message], Message]:
    """The prompt, and the answer that is in `column`. Messages there may begin with the prompt. Raises RowError."""
    own = value.get(column)
    if not is_turns(own):
        return _prompt(value, columns), {"role": "assistant", "content": answer_field(value, column)}
    side = turns(own, column)
    if all(message["role"] == "assistant" for message in side):
        if len(side) > 1:
            raise RowError(f"`{column}` has {len(side)} answers in a row", "write one message of role assistant")
        return _prompt(value, columns), side[0]
    system = optional_field(value, columns.system or "system")
    if system.strip() and side[0]["role"] != "system":
        side.insert(0, {"role": "system", "content": system})
    check_conversation(side, column)
    return side[:-1], side[-1]


def _prompt(value: dict[str, Any], columns: Columns) -> list[Message]:
    column = columns.prompt or "prompt"
    system = optional_field(value, columns.system or "system")
    if is_turns(value.get(column)):
        messages = turns(value[column], column)
        if messages[-1]["role"] != "user":
            raise RowError(
                f"`{column}` ends with role {messages[-1]['role']}", f"end `{column}` with what the user says"
            )
        check_system_first(messages, column)
    else:
        messages = [{"role": "user", "content": text_field(value, column)}]
    if system.strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages
