"""Lists of messages in the spellings that data sets use: role and content (OpenAI), from and value (ShareGPT).

Also as an object of lists, `{"role": [...], "content": [...]}`: so the `datasets` library writes a sequence of objects.
"""

from __future__ import annotations

import json
from typing import Any

from finetune_runner.data.fields import NoAnswerError, checked_text, column_names, type_name
from finetune_runner.data.records import RowError
from finetune_runner.data.rows import Message

EXAMPLE = 'write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
_ROLES = {
    "system": "system",
    "developer": "system",  # OpenAI's name of it since o1
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
_TOOLS = frozenset(["tool", "function", "ipython", "function_call", "function_response", "tool_call", "observation"])
_TOOL_FIX = "remove the row, or write the call and what it gave as text"
_REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys for what comes before an answer (DeepSeek and Qwen, OpenRouter, gpt-oss)."""


def is_turns(value: object) -> bool:
    """Whether a value is a list of messages, possibly kept as JSON text as CSV does."""
    if isinstance(value, str):
        if not value.lstrip().startswith("[{"):
            return False
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return False
        # An answer may well be a list of objects: messages have a role.
        return isinstance(value, list) and all(_has_role(item) for item in value)
    # Of an object only one of lists, and never as text: an answer may well be such an object.
    if isinstance(value, dict):
        return isinstance(value.get("role", value.get("from")), list)
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _has_role(item: object) -> bool:
    return isinstance(item, dict) and isinstance(item.get("role", item.get("from")), str)


def turns(value: object, column: str) -> list[Message]:
    """The messages of a column.

    Raises:
        RowError: naming the message that cannot be used; NoAnswerError when that is an empty last answer.
    """
    listed: Any = value
    if isinstance(listed, str):  # CSV and some Parquet files keep the list as JSON
        try:
            listed = json.loads(listed)
        except (ValueError, RecursionError) as error:
            raise RowError(f"`{column}` is text that is not JSON: {error}", EXAMPLE) from error
    if isinstance(listed, dict) and is_turns(listed):
        listed = _beside_each_other(listed, column)
    if not isinstance(listed, list):
        raise RowError(f"`{column}` is {type_name(listed)}, not a list", EXAMPLE)
    if not listed:
        raise RowError(f"`{column}` is empty", EXAMPLE)
    return [
        _message(item, f"`{column}[{number}]`", last=number == len(listed) - 1) for number, item in enumerate(listed)
    ]


def _beside_each_other(value: dict[str, Any], column: str) -> list[dict[str, Any]]:
    """The messages of an object of lists. Raises RowError where these are not equally long."""
    lists = {key: each for key, each in value.items() if isinstance(each, list)}
    lengths = {key: len(each) for key, each in lists.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{count} of {column_names([key])}" for key, count in lengths.items())
        raise RowError(f"`{column}` has lists of different lengths: {told}", EXAMPLE)
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


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


def _message(item: object, what: str, *, last: bool) -> Message:
    if not isinstance(item, dict):
        raise RowError(f"{what} is {type_name(item)}, not an object", EXAMPLE)
    if item.get("tool_calls") or item.get("function_call"):
        raise RowError(f"{what} calls tools, which this version does not train", _TOOL_FIX)
    role = _role(item, what)
    key = "value" if item.get("content") is None and "value" in item else "content"
    if key not in item:
        raise RowError(f"{what} has no content (has {column_names(item)})", EXAMPLE)
    if role == "assistant":
        _check_learned(item, what)
        _check_reasoning(item, what)
    content = _joined(item[key], f"{what}.{key}")
    if last and role == "assistant" and (content is None or (isinstance(content, str) and not content.strip())):
        raise NoAnswerError(f"{what}.{key}", content)
    return {"role": role, "content": checked_text(content, f"{what}.{key}", may_be_empty=role == "system")}


def _role(item: dict[str, Any], what: str) -> str:
    key = "from" if item.get("role") is None and "from" in item else "role"
    spelled = item.get(key)
    word = spelled.strip().lower() if isinstance(spelled, str) else ""
    if word in _ROLES:
        return _ROLES[word]
    if word in _TOOLS:
        raise RowError(f"{what} is of a tool ({key} {word}), which this version does not train", _TOOL_FIX)
    known = f"use one of {', '.join(_ROLES)}"
    if spelled is None:
        raise RowError(f"{what} has no role", known)
    raise RowError(f"{what}.{key} is {json.dumps(spelled, default=str)[:40]}", known)


def _check_learned(item: dict[str, Any], what: str) -> None:
    """Raise RowError for an answer that other trainers would leave out: here it would be learned without a word."""
    for key, off in (("weight", "0"), ("train", "false"), ("training", "false")):
        if item.get(key) is not None and not item[key]:
            raise RowError(
                f"{what} has {key} {off}, which is not read: the answer would be learned",
                "split the conversation so that each row ends with an answer to learn, and set data.loss: completion",
            )


def _check_reasoning(item: dict[str, Any], what: str) -> None:
    """Raise RowError for reasoning beside the answer: without a word it would not be learned."""
    for key in _REASONING:
        if item.get(key):
            raise RowError(
                f"{what} has {key}, which is not read",
                'write it into the content, as "<think>...</think>" before the answer, or remove it to learn from '
                "answers alone",
            )


def _joined(content: object, what: str) -> object:
    """Text of a list of parts; anything else as it is. Raises RowError for a part that is no text."""
    if not isinstance(content, list) or not content:
        return content
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else "text" if isinstance(part, str) else type_name(part)
        if kind != "text":
            raise RowError(
                f"{what} has a part of type {str(kind)[:40]}; only text is trained", "remove the part or the row"
            )
        texts.append(checked_text(part if isinstance(part, str) else part.get("text"), what))
    return "".join(texts)
