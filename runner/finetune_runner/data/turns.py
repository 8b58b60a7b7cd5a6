"""Lists of messages in the spellings that data sets use: role and content (OpenAI), from and value (ShareGPT)."""

from __future__ import annotations

import json
from typing import Any

from finetune_runner.data.fields import checked_text, type_name
from finetune_runner.data.records import RowError
from finetune_runner.data.rows import Message

EXAMPLE = 'write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
_ROLES = ("system", "user", "assistant")
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}


def is_turns(value: object) -> bool:
    """Whether a value is a list of messages, possibly kept as JSON text as CSV does."""
    if isinstance(value, str):
        return value.lstrip().startswith("[{")
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def turns(value: object, column: str) -> list[Message]:
    """The messages of a column. Raises RowError naming the message that cannot be used."""
    listed: Any = value
    if isinstance(listed, str):  # CSV and some Parquet files keep the list as JSON
        try:
            listed = json.loads(listed)
        except (ValueError, RecursionError) as error:
            raise RowError(f"`{column}` is text that is not JSON: {error}", EXAMPLE) from error
    if not isinstance(listed, list):
        raise RowError(f"`{column}` is {type_name(listed)}, not a list", EXAMPLE)
    if not listed:
        raise RowError(f"`{column}` is empty", EXAMPLE)
    return [_message(item, f"`{column}[{number}]`") for number, item in enumerate(listed)]


def check_system_first(messages: list[Message], column: str) -> None:
    """Raise RowError for a system message that is not the first: templates know one place for it."""
    if any(message["role"] == "system" for message in messages[1:]):
        raise RowError(f"`{column}` has a system message that is not the first", "put the system message first, once")


def check_conversation(messages: list[Message], column: str) -> None:
    """Raise RowError unless the messages are a conversation that ends with an answer."""
    roles = [message["role"] for message in messages]
    if roles[-1] != "assistant":
        raise RowError(
            f"has no answer: `{column}` ends with role {roles[-1]}", "end each row with the assistant's answer"
        )
    if "user" not in roles:
        raise RowError(f"`{column}` has no message of role user", EXAMPLE)
    check_system_first(messages, column)


def _message(item: object, what: str) -> Message:
    if not isinstance(item, dict):
        raise RowError(f"{what} is {type_name(item)}, not an object", EXAMPLE)
    if item.get("tool_calls"):
        raise RowError(
            f"{what} calls tools, which this version does not train", "remove the row or write the call as text"
        )
    sharegpt = "from" in item and "role" not in item
    spelled = item.get("from") if sharegpt else item.get("role")
    role = _SHAREGPT_ROLES.get(spelled) if sharegpt and isinstance(spelled, str) else spelled
    if role not in _ROLES:
        known = ", ".join(sorted(_SHAREGPT_ROLES)) if sharegpt else ", ".join(_ROLES)
        key = "from" if sharegpt else "role"
        raise RowError(f"{what}.{key} is {json.dumps(spelled, default=str)[:40]}", f"use one of {known}")
    key = "value" if sharegpt else "content"
    content = item.get(key)
    if isinstance(content, list) and content and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        content = "".join(checked_text(part.get("text"), f"{what}.{key}") for part in content)
    return {"role": str(role), "content": checked_text(content, f"{what}.{key}", may_be_empty=role == "system")}
