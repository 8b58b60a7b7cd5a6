"""Parts of a row that do not depend on its format: a system prompt from the spec, labels that several people gave."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from finetune_api.job.data import Columns
from finetune_runner.data.fields import checked_text, type_name
from finetune_runner.data.records import RowError
from finetune_runner.data.rows import Message, Parsed

_HINT = 'write a list of labels, one per person, or an object: {"anna": "billing", "ben": "access"}'


def as_parsed(content: Parsed | Sequence[Message]) -> Parsed:
    """What a format gave, in its full form."""
    return content if isinstance(content, Parsed) else Parsed(tuple(content))


def with_system_prompt(parsed: Parsed, system_prompt: str | None) -> Parsed:
    """The row under a system prompt when it has none of its own; plain text is left alone."""
    first = parsed.messages[0]
    if system_prompt is None or len(parsed.messages) == 1 or (first["role"] == "system" and first["content"].strip()):
        return parsed
    rest = parsed.messages[1:] if first["role"] == "system" else parsed.messages
    return replace(parsed, messages=({"role": "system", "content": system_prompt}, *rest))


def annotations_of(value: dict[str, Any], columns: Columns) -> tuple[str, ...]:
    """Labels that several people gave the row, empty ones left out.

    Raises:
        RowError: when a column that was named in the spec holds something else; one that only happens to be called
            `annotations` is not read then.
    """
    column = columns.annotations or "annotations"
    given = value.get(column)
    if given is None or given == "":
        return ()
    if isinstance(given, str):  # CSV
        try:
            given = json.loads(given)
        except ValueError:
            given = [label.strip() for label in given.split("|")]
    labels = list(given.values()) if isinstance(given, dict) else given
    if isinstance(labels, list) and all(label is None or isinstance(label, str | int | float) for label in labels):
        told = [_label(label) for label in labels if label is not None and label != ""]
        try:
            return tuple(checked_text(label, f"`{column}`", may_be_empty=True) for label in told)
        except RowError:
            if columns.annotations is not None:
                raise
    if columns.annotations is None:
        return ()
    raise RowError(f"`{column}` is {type_name(given)}, not labels", _HINT)


def _label(label: str | float) -> str:
    """A label as text; a whole number is one also where a table with gaps keeps it as 3.0."""
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)
