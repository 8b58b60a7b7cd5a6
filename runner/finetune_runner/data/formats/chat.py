"""chat: a list of messages with role and content, ending with the assistant's answer."""

from __future__ import annotations

import json
from typing import Any

from finetune_api.job.data import Columns
from finetune_runner.data.fields import checked_text, optional_field, type_name
from finetune_runner.data.records import RowError
from finetune_runner.data.rows import Message

NAME = "chat"
SHAPE = "messages: [{role, content}]"
_ROLES = ("system", "user", "assistant")
_EXAMPLE = 'write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'


def matches(value: dict[str, Any], columns: Columns) -> bool:
    """Whether a row looks like this format."""
    return (columns.messages or "messages") in value


def parse(value: dict[str, Any], columns: Columns) -> list[Message]:
    """The row's messages. Raises RowError."""
    column = columns.messages or "messages"
    if column not in value:
        raise RowError(f"has no `{column}` (has {', '.join(list(value)[:8]) or 'nothing'})", _EXAMPLE)
    listed: Any = value[column]
    if isinstance(listed, str):  # CSV and some Parquet files keep the list as JSON
        try:
            listed = json.loads(listed)
        except ValueError as error:
            raise RowError(f"`{column}` is text that is not JSON: {error}", _EXAMPLE) from error
    if not isinstance(listed, list):
        raise RowError(f"`{column}` is {type_name(listed)}, not a list", _EXAMPLE)
    if not listed:
        raise RowError(f"`{column}` is empty", _EXAMPLE)
    messages = [_message(item, f"`{column}[{number}]`") for number, item in enumerate(listed)]
    system = optional_field(value, columns.system or "system")
    if system.strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    _check_order(messages, column)
    return messages


def _message(item: object, what: str) -> Message:
    if not isinstance(item, dict):
        raise RowError(f"{what} is {type_name(item)}, not an object", _EXAMPLE)
    if item.get("tool_calls"):
        raise RowError(
            f"{what} calls tools, which this version does not train", "remove the row or write the call as text"
        )
    role = item.get("role")
    if role not in _ROLES:
        raise RowError(f"{what}.role is {json.dumps(role, default=str)[:40]}", f"use one of {', '.join(_ROLES)}")
    content = item.get("content")
    if isinstance(content, list) and content and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        content = "".join(checked_text(part.get("text"), f"{what}.content") for part in content)
    return {"role": str(role), "content": checked_text(content, f"{what}.content", may_be_empty=role == "system")}


def _check_order(messages: list[Message], column: str) -> None:
    roles = [message["role"] for message in messages]
    if roles[-1] != "assistant":
        raise RowError(
            f"has no answer: `{column}` ends with role {roles[-1]}", "end each row with the assistant's answer"
        )
    if "user" not in roles:
        raise RowError(f"`{column}` has no message of role user", _EXAMPLE)
    if "system" in roles[1:]:
        raise RowError(f"`{column}` has a system message that is not the first", "put the system message first, once")
