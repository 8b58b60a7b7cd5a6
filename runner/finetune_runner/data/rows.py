"""A prepared row, and the file it is kept in."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
    def prompt(self) -> tuple[Message, ...]:
        """All messages but the answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The assistant's answer."""
        return self.messages[-1]["content"]

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


def write_rows(rows: Iterable[Row]) -> bytes:
    """Rows as gzipped JSON lines. The same rows give the same bytes: no time stamp, no file name."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, compresslevel=6, mtime=0) as target:
        for row in rows:
            target.write(json.dumps(row.to_wire(), ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
    return buffer.getvalue()


def read_rows(data: bytes) -> list[Row]:
    """Rows of gzipped JSON lines as `write_rows` makes them."""
    return [Row.from_wire(json.loads(line)) for line in gzip.decompress(data).split(b"\n") if line]
