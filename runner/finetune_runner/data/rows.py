"""A prepared row, and the file it is kept in."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from finetune_runner.reasoning import without_reasoning

Message = dict[str, str]
"""`{"role": "system" | "user" | "assistant", "content": text}`."""


RowKind = Literal["exchange", "preference", "judged", "text"]
"""exchange: prompt and answer (sft); preference: a better and a worse answer (dpo, kto); judged: one answer that is
good or bad (kto); text: plain text that goes on (sft)."""


@dataclass(frozen=True)
class Parsed:
    """What a format reads from a raw row: the parts of a `Row` that are content."""

    messages: Sequence[Message]
    rejected: str | None = None
    label: bool | None = None
    annotations: tuple[str, ...] = ()
    read_as: str = ""
    """What was made of the row where that does not follow from its format, for people; empty = nothing."""


@dataclass(frozen=True)
class Row:
    """One example. The last message is the assistant's answer; plain text is an answer without a prompt."""

    id: str
    """First 16 hexadecimal digits of the sha256 of the content: the same content has the same id."""
    messages: tuple[Message, ...]
    weight: float = 1.0
    group: str = ""
    rejected: str | None = None
    """The worse answer to the same prompt; the last message is the better one."""
    label: bool | None = None
    """Whether the answer is wanted; None where rows are not judged."""
    annotations: tuple[str, ...] = ()
    """Labels that several people gave this row, for their agreement; nothing is trained on them."""

    @property
    def kind(self) -> RowKind:
        """What the row can be trained as."""
        if self.rejected is not None:
            return "preference"
        if self.label is not None:
            return "judged"
        return "text" if len(self.messages) == 1 else "exchange"

    @property
    def wanted(self) -> bool:
        """Whether the answer is an example of a good one: kto also learns from bad ones, but nobody is to give them."""
        return self.label is not False

    @property
    def prompt(self) -> tuple[Message, ...]:
        """All messages but the answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The assistant's answer."""
        return self.messages[-1]["content"]

    @property
    def said(self) -> str:
        """The answer without the reasoning before it: what is judged."""
        return without_reasoning(self.answer)

    @property
    def content_key(self) -> str:
        """Identity of what was asked and answered, whatever the system prompt; rows are found again by it."""
        said = [message for message in self.messages if message["role"] != "system"]
        return content_id(said, self.rejected, self.label)

    def to_wire(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "id": self.id,
            "messages": list(self.messages),
            "weight": self.weight,
            "group": self.group,
            **({} if self.rejected is None else {"rejected": self.rejected}),
            **({} if self.label is None else {"label": self.label}),
            **({"annotations": list(self.annotations)} if self.annotations else {}),
        }

    @classmethod
    def from_wire(cls, value: dict[str, Any]) -> Row:
        """Parse the JSON form."""
        return cls(
            str(value["id"]),
            tuple(value["messages"]),
            float(value["weight"]),
            str(value["group"]),
            value.get("rejected"),
            value.get("label"),
            tuple(value.get("annotations", ())),
        )


@dataclass(frozen=True)
class WrittenRows:
    """What was written."""

    rows: int
    digest: str
    """sha256 over the rows' content, whatever their compression."""


def content_id(messages: Iterable[Message], rejected: str | None = None, label: bool | None = None) -> str:
    """Identity of a row's content."""
    content: Any = list(messages)
    if rejected is not None or label is not None:
        content = [content, rejected, label]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]


def make_row(content: Parsed | Iterable[Message], group: str = "") -> Row:
    """A row of this content."""
    parsed = content if isinstance(content, Parsed) else Parsed(tuple(content))
    messages = tuple(parsed.messages)
    return Row(
        content_id(messages, parsed.rejected, parsed.label),
        messages,
        1.0,
        group,
        parsed.rejected,
        parsed.label,
        parsed.annotations,
    )


def write_rows_to(stream: BinaryIO, rows: Iterable[Row]) -> WrittenRows:
    """Rows as gzipped JSON lines. The same rows give the same bytes: no time stamp, no file name."""
    content = hashlib.sha256()
    count = 0
    with gzip.GzipFile(filename="", mode="wb", fileobj=stream, compresslevel=6, mtime=0) as target:
        for row in rows:
            wire = row.to_wire()
            content.update((b"\n" if count else b"") + json.dumps(wire, sort_keys=True).encode())
            target.write(json.dumps(wire, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
            count += 1
    return WrittenRows(count, content.hexdigest())


def write_rows(rows: Iterable[Row]) -> bytes:
    """See `write_rows_to`; for few rows."""
    buffer = io.BytesIO()
    write_rows_to(buffer, rows)
    return buffer.getvalue()


def iter_rows(stream: BinaryIO) -> Iterator[Row]:
    """Rows of gzipped JSON lines as `write_rows_to` makes them, one at a time."""
    with gzip.GzipFile(fileobj=stream, mode="rb") as source:
        for line in source:
            yield Row.from_wire(json.loads(line))


def read_rows(data: bytes) -> list[Row]:
    """See `iter_rows`; for few rows."""
    return list(iter_rows(io.BytesIO(data)))
