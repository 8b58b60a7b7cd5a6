"""A prepared row, and the file it is kept in."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Message = dict[str, str]
"""`{"role": "system" | "user" | "assistant", "content": text}`."""


@dataclass(frozen=True)
class Row:
    """One example. The last message is the assistant's answer."""

    id: str
    """First 16 hexadecimal digits of the sha256 of the messages: the same content has the same id."""
    messages: tuple[Message, ...]
    weight: float = 1.0
    group: str = ""

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
        return {"id": self.id, "messages": list(self.messages), "weight": self.weight, "group": self.group}

    @classmethod
    def from_wire(cls, value: dict[str, Any]) -> Row:
        """Parse the JSON form."""
        return cls(str(value["id"]), tuple(value["messages"]), float(value["weight"]), str(value["group"]))


def content_id(messages: Iterable[Message]) -> str:
    """Identity of a row's content."""
    return hashlib.sha256(json.dumps(list(messages), ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]


def make_row(messages: Iterable[Message], group: str = "") -> Row:
    """A row of these messages."""
    kept = tuple(messages)
    return Row(content_id(kept), kept, 1.0, group)


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
