"""chat: a list of messages that ends with the assistant's answer; ShareGPT's from and value too."""

from __future__ import annotations

from typing import Any

from finetune_api.job.data import Columns
from finetune_runner.data.fields import column_names, optional_field
from finetune_runner.data.records import RowError
from finetune_runner.data.rows import Message
from finetune_runner.data.turns import EXAMPLE, check_conversation, turns

NAME = "chat"
SHAPE = "messages: [{role, content}] or conversations: [{from, value}]"
RANK = 1


def _column(value: dict[str, Any], columns: Columns) -> str:
    mapped = columns.messages or columns.conversations
    if mapped is not None:
        return mapped
    return "conversations" if value.get("messages") is None and "conversations" in value else "messages"


def _lists_tools(tools: object) -> bool:
    """Whether a row offers the model tools: as a list, or as JSON text of one."""
    return (isinstance(tools, list) and bool(tools)) or (
        isinstance(tools, str) and tools.lstrip().startswith("[") and tools.strip(" \t\r\n[]") != ""
    )


def matches(value: dict[str, Any], columns: Columns) -> bool:
    """Whether a row looks like this format."""
    return _column(value, columns) in value


def parse(value: dict[str, Any], columns: Columns) -> list[Message]:
    """The row's messages. Raises RowError."""
    column = _column(value, columns)
    if column not in value:
        raise RowError(f"has no `{column}` (has {column_names(value)})", EXAMPLE)
    if _lists_tools(value.get("tools")):
        raise RowError("`tools` lists tools, which this version does not train", "remove the row, or its `tools`")
    messages = turns(value[column], column)
    system = optional_field(value, columns.system or "system")
    if system.strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    check_conversation(messages, column)
    return messages
