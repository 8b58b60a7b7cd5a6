"""All rows of a job in a file of the scratch folder: stage prepare holds one row in memory, however many there are.

SQLite: its page cache is bounded, and it sorts and groups on disk. The file is scratch: it needs no journal, and a
stage that is interrupted starts again. One thread uses a store. Memory: the page cache, one row, and what is buffered.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from finetune_runner.data.groups import Groups
from finetune_runner.data.rows import Row

_CACHE_KIB = 16 * 1024
_BUFFERED_ROWS = 1000
_BUFFERED_CHARACTERS = 4 << 20
_SCHEMA = """
CREATE TABLE rows(number INTEGER PRIMARY KEY, split TEXT, came_from TEXT, id TEXT, key TEXT, cluster TEXT,
                  alike INTEGER, weight REAL, copies INTEGER DEFAULT 1, origin TEXT);
CREATE TABLE bodies(number INTEGER PRIMARY KEY, body TEXT);
CREATE TABLE lengths(number INTEGER PRIMARY KEY, total INTEGER, answer INTEGER);
CREATE TABLE changes(number INTEGER PRIMARY KEY, body TEXT, id TEXT);
"""
_EXAMPLES = """
SELECT rows.number, split, origin, copies, body, total, answer FROM rows
JOIN bodies ON bodies.number = rows.number LEFT JOIN lengths ON lengths.number = rows.number
WHERE split = ? ORDER BY {order}
"""
_APPLY = (
    "UPDATE rows SET split = NULL WHERE number IN (SELECT number FROM changes WHERE body IS NULL)",
    "UPDATE rows SET id = changes.id FROM changes WHERE changes.number = rows.number AND changes.body NOT NULL",
    "UPDATE bodies SET body = changes.body FROM changes WHERE changes.number = bodies.number AND changes.body NOT NULL",
    "DELETE FROM changes",
)


@dataclass(frozen=True)
class Length:
    """Tokens of an example before any cutting."""

    total: int
    answer: int


@dataclass(frozen=True)
class Example:
    """A row, where it came from and where it is now."""

    row: Row
    origin: str
    """File and position, for people: `a.jsonl line 3`."""
    number: int = 0
    """Of the row in its store, in the order of reading."""
    split: str = ""
    copies: int = 1
    """How often an epoch uses the row."""
    length: Length | None = None
    """Known once the tokens are counted."""


@dataclass(frozen=True)
class Changed:
    """What applying the noted changes did: rows by split."""

    dropped: Mapping[str, int]
    replaced: Mapping[str, int]
    dropped_copies: Mapping[str, int]
    """How often an epoch used the dropped rows."""


class RowStore:
    """Rows by split. Changes are noted first and applied together, so that a pass over the rows sees them as they were.

    Args:
        path: file to keep the rows in; None keeps them in memory (small data, tests).
        check_stop: called on the way through the rows; raises when the stage shall end.
    """

    def __init__(self, path: Path | None = None, check_stop: Callable[[], None] = lambda: None) -> None:
        self.check_stop = check_stop
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
        self._path = path
        self.database = connect(path)
        self.database.executescript(_SCHEMA)
        self.database.execute("BEGIN")
        self._rows = 0
        self._heads: list[tuple[object, ...]] = []
        self._bodies: list[tuple[int, str]] = []
        self._characters = 0

    def add(self, split: str, row: Row, origin: str, weight: float = 1.0) -> int:
        """Append a row and return its number."""
        self._rows += 1
        body = json.dumps(row.to_wire(), ensure_ascii=False, separators=(",", ":"))
        self._heads.append((self._rows, split, split, row.id, row.content_key, row.group, weight, origin))
        self._bodies.append((self._rows, body))
        self._characters += len(body)
        if len(self._bodies) >= _BUFFERED_ROWS or self._characters >= _BUFFERED_CHARACTERS:
            self._flush()
        return self._rows

    @property
    def last(self) -> int:
        """Number of the row that was added last; 0 = none."""
        return self._rows

    def splits(self) -> list[str]:
        """Names of the splits that have rows."""
        return list(self.counts())

    def counts(self) -> dict[str, int]:
        """Rows by split."""
        self._flush()
        return dict(
            self.database.execute(
                "SELECT split, count(*) FROM rows WHERE split IS NOT NULL GROUP BY split ORDER BY min(number)"
            )
        )

    def examples(self, *splits: str, by_content: bool = False) -> Iterator[Example]:
        """Rows of the splits, one split after the other, in the order of reading (or of their content's id)."""
        self._flush()
        order = "rows.id, rows.number" if by_content else "rows.number"
        for split in splits:
            found = self.database.execute(_EXAMPLES.format(order=order), (split,))
            for done, (number, where, origin, copies, body, total, answer) in enumerate(found):
                if done % _BUFFERED_ROWS == 0:
                    self.check_stop()
                length = None if total is None else Length(total, answer)
                yield Example(Row.from_wire(json.loads(body)), origin, number, where, copies, length)

    def example(self, number: int) -> Example:
        """The row of a number. Raises KeyError."""
        self._flush()
        found = self.database.execute(
            "SELECT split, origin, copies, body FROM rows JOIN bodies ON bodies.number = rows.number "
            "WHERE rows.number = ?",
            (number,),
        ).fetchone()
        if found is None:
            raise KeyError(number)
        split, origin, copies, body = found
        return Example(Row.from_wire(json.loads(body)), origin, number, split, copies)

    def note_drop(self, number: int) -> None:
        """Drop a row when the changes are applied."""
        self.database.execute("INSERT OR REPLACE INTO changes VALUES (?, NULL, NULL)", (number,))

    def note_replacement(self, number: int, row: Row) -> None:
        """Give a row another content when the changes are applied; it stays the same row for the lineage."""
        body = json.dumps(row.to_wire(), ensure_ascii=False, separators=(",", ":"))
        self.database.execute("INSERT OR REPLACE INTO changes VALUES (?, ?, ?)", (number, body, row.id))

    def apply(self) -> Changed:
        """Apply the noted changes."""
        self._flush()
        counted = "SELECT split, {} FROM rows JOIN changes USING (number) WHERE body IS {} GROUP BY split"

        def by_split(what: str, body: str) -> dict[str, int]:
            return dict(self.database.execute(counted.format(what, body)))

        changed = Changed(
            by_split("count(*)", "NULL"), by_split("count(*)", "NOT NULL"), by_split("sum(copies)", "NULL")
        )
        for statement in _APPLY:
            self.database.execute(statement)
        return changed

    def groups(self) -> Groups:
        """An empty grouping that lives on disk beside the rows."""
        return Groups(self.database)

    @property
    def folder(self) -> Path | None:
        """Where further scratch files belong; None when the rows are in memory."""
        return self._path.parent if self._path is not None else None

    def copies(self) -> dict[str, int]:
        """Rows of one epoch by split: a row counts as often as it is used."""
        self._flush()
        return dict(
            self.database.execute(
                "SELECT split, sum(copies) FROM rows WHERE split IS NOT NULL GROUP BY split ORDER BY min(number)"
            )
        )

    def set_lengths(self, lengths: Iterable[tuple[int, Length]]) -> None:
        """Keep the lengths of rows, by their numbers."""
        self.database.executemany(
            "INSERT OR REPLACE INTO lengths VALUES (?, ?, ?)",
            ((number, length.total, length.answer) for number, length in lengths),
        )

    def histogram(self, *splits: str) -> list[tuple[int, int]]:
        """Lengths in tokens that occur in the splits, and how many rows of one epoch have each, shortest first."""
        marks = ", ".join("?" * len(splits))
        return list(
            self.database.execute(
                f"SELECT total, sum(copies) FROM rows JOIN lengths USING (number) WHERE split IN ({marks}) "  # noqa: S608
                "GROUP BY total ORDER BY total",
                splits,
            )
        )

    def flush(self) -> None:
        """Make appended rows visible to statements on `database`."""
        self._flush()

    def close(self) -> None:
        """Remove the file."""
        self.database.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _flush(self) -> None:
        if not self._bodies:
            return
        self.database.executemany(
            "INSERT INTO rows(number, split, came_from, id, key, cluster, weight, origin) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            self._heads,
        )
        self.database.executemany("INSERT INTO bodies VALUES (?, ?)", self._bodies)
        self._heads, self._bodies, self._characters = [], [], 0


def connect(path: Path | None) -> sqlite3.Connection:
    """A scratch database with a bounded cache, which sorts in files beside itself."""
    database = sqlite3.connect(str(path) if path is not None else ":memory:", isolation_level=None)
    if path is not None:
        folder = str(path.parent).replace("'", "''")
        database.executescript(
            f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{_CACHE_KIB}; "
            f"PRAGMA temp_store = FILE; PRAGMA temp_store_directory = '{folder}'; PRAGMA locking_mode = EXCLUSIVE"
        )
    return database
