"""The texts of a row, and the row with other texts: what checks that mend or redact share. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from finetune_runner.data.rows import Row, content_id


def texts_of(row: Row) -> Iterator[str]:
    """Every text of a row: its messages and the worse answer."""
    for message in row.messages:
        yield message["content"]
    if row.rejected is not None:
        yield row.rejected


def rewritten(row: Row, change: Callable[[str], str]) -> Row:
    """The row with every text changed, and the identity of its new content; the same row when nothing changed."""
    messages = tuple({**message, "content": change(message["content"])} for message in row.messages)
    rejected = None if row.rejected is None else change(row.rejected)
    if messages == row.messages and rejected == row.rejected:
        return row
    return replace(row, id=content_id(messages, rejected, row.label), messages=messages, rejected=rejected)
