"""Fields of a raw row, with words for what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from finetune_api.wording import counted
from finetune_runner.context import printable
from finetune_runner.data.records import RowError
from finetune_runner.data.rows import Message

_NAME_CHARACTERS, _NAME_WORDS = 40, 4
_NUMBER = re.compile(r"\d{4}")
_TYPE_NAMES = {
    dict: "an object",
    list: "a list",
    bool: "true/false",
    int: "a number",
    float: "a number",
    type(None): "null",
}


class NoAnswerError(RowError):
    """The answer of a row has no text; data.checks.emptyAnswers may let the row go."""

    def __init__(self, what: str, found: object) -> None:
        super().__init__(
            f"{what} is {'null' if found is None else 'empty'}",
            f"give {what} a text, remove the row, or set data.checks.emptyAnswers: drop",
        )


def column_names(names: Iterable[object], shown: int = 8) -> str:
    """The first names of columns, for messages. What looks like content (a file without a header) is not quoted."""
    told = [name if is_name(name) else f"<{counted(len(name), 'character')}>" for name in map(str, names)]
    return printable(", ".join(told[:shown])) or "nothing"


def is_name(text: str) -> bool:
    """Whether a text may be the name of a column, and not a value of a file without a header."""
    short = len(text) <= _NAME_CHARACTERS and len(text.split()) <= _NAME_WORDS
    return short and "@" not in text and _NUMBER.search(text) is None


def answer_field(value: dict[str, Any], column: str) -> str:
    """The text of an answer. Raises NoAnswerError when there is none, else RowError as `text_field`."""
    found = value.get(column)
    if column in value and (found is None or (isinstance(found, str) and not found.strip())):
        raise NoAnswerError(f"`{column}`", found)
    return text_field(value, column)


def text_field(value: dict[str, Any], column: str, *, may_be_empty: bool = False) -> str:
    """The text in a column.

    Raises:
        RowError: when it is missing, empty, not text, or text that UTF-8 cannot hold.
    """
    if column not in value:
        raise RowError(
            f"has no `{column}` (has {column_names(value)})", f"add `{column}`, or map it with data.train[].columns"
        )
    return checked_text(value[column], f"`{column}`", may_be_empty=may_be_empty)


def optional_field(value: dict[str, Any], column: str) -> str:
    """The text in a column that may be missing, null or empty."""
    return "" if value.get(column) is None else text_field(value, column, may_be_empty=True)


def checked_text(text: object, what: str, *, may_be_empty: bool = False) -> str:
    """Refuse what is not usable text; `what` names it."""
    if text is None and not may_be_empty:
        raise RowError(f"{what} is null", f"give {what} a text, or remove the row")
    if not isinstance(text, str):
        raise RowError(f"{what} is {type_name(text)}, not text", f"write {what} as a quoted text")
    if not text.strip() and not may_be_empty:
        raise RowError(f"{what} is empty", f"give {what} a text, or remove the row")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(
            f"{what} has half a surrogate pair at character {error.start + 1}", "write valid Unicode"
        ) from error
    return text


def type_name(value: object) -> str:
    """What JSON calls the type of a value, with its article."""
    return _TYPE_NAMES.get(type(value), type(value).__name__)


def conversation(prompt: str, completion: str, system: str) -> list[Message]:
    """Messages of a single exchange."""
    start: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
    return [*start, {"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
