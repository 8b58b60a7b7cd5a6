"""Grouping on disk: which rows share a key, without holding the keys in memory."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

_BUFFERED = 5000
_names = count(1)


@dataclass(frozen=True)
class Group:
    """Rows of one key."""

    rows: int
    first: int
    """Number of the first row."""
    tags: int
    """How many different tags the rows have."""


class Groups:
    """Rows by key (any text; kept as 128 bits of its sha256), each with a tag. Made by `RowStore.groups()`.

    For example the input as key and the answer as tag: a group with several tags has conflicting answers.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._table = f"groups_{next(_names)}"
        self._waiting: list[tuple[bytes, bytes, int]] = []
        self._grouped = False
        database.execute(f"CREATE TABLE {self._table}(key BLOB, tag BLOB, number INTEGER)")

    def add(self, key: str, number: int, tag: str = "") -> None:
        """Put a row into the group of a key."""
        self._waiting.append((_digest(key), _digest(tag), number))
        if len(self._waiting) >= _BUFFERED:
            self._flush()

    def several(self, *, tags: bool = False) -> Iterator[Group]:
        """Groups of more than one row (or, with `tags`, of more than one tag), in the order of their first rows."""
        self._flush()
        what = "count(DISTINCT tag)" if tags else "count(*)"
        found = self._database.execute(
            f"SELECT count(*), min(number), count(DISTINCT tag) FROM {self._table} GROUP BY key "  # noqa: S608 - own name
            f"HAVING {what} > 1 ORDER BY min(number)"
        )
        for rows, first, different in found:
            yield Group(rows, first, different)

    def numbers_of_several(self, *, tags: bool = False) -> Iterator[int]:
        """Numbers of all rows of groups of more than one row (or, with `tags`, of more than one tag), in order."""
        self._flush()
        what = "count(DISTINCT tag)" if tags else "count(*)"
        found = self._database.execute(
            f"SELECT number FROM {self._table} WHERE key IN "  # noqa: S608 - own name
            f"(SELECT key FROM {self._table} GROUP BY key HAVING {what} > 1) ORDER BY number"
        )
        yield from (number for (number,) in found)

    def later(self) -> Iterator[tuple[int, int]]:
        """Every row that is not the first of its key and tag: its number and that of the first, in order."""
        self._flush()
        yield from self._database.execute(
            f"SELECT number, first FROM (SELECT number, min(number) OVER (PARTITION BY key, tag) AS first "  # noqa: S608
            f"FROM {self._table}) WHERE number > first ORDER BY number"
        )

    def first_of_tags(self, first: int, most: int = 2) -> list[int]:
        """Numbers of the first rows of the first `most` tags of the group whose first row is `first`."""
        self._flush()
        if not self._grouped:
            self._database.execute(f"CREATE INDEX {self._table}_keys ON {self._table}(key)")
            self._database.execute(f"CREATE INDEX {self._table}_numbers ON {self._table}(number)")
            self._grouped = True
        return [
            number
            for (number,) in self._database.execute(
                f"SELECT min(number) FROM {self._table} WHERE key = (SELECT key FROM {self._table} WHERE number = ?) "  # noqa: S608
                "GROUP BY tag ORDER BY min(number) LIMIT ?",
                (first, most),
            )
        ]

    def close(self) -> None:
        """Free the disk space."""
        self._waiting.clear()
        self._database.execute(f"DELETE FROM {self._table}")  # noqa: S608 - own name; DROP waits for open cursors

    def __enter__(self) -> Groups:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _flush(self) -> None:
        self._database.executemany(f"INSERT INTO {self._table} VALUES (?, ?, ?)", self._waiting)  # noqa: S608
        self._waiting = []


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]
