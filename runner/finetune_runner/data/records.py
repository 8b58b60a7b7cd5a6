"""Raw rows as containers give them, and rows that cannot be used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_api.wording import counted
from finetune_runner.errors import StageError

_SHOWN = 5


@dataclass(frozen=True)
class Record:
    """One raw row."""

    file: str
    position: str
    """`line 3` (as an editor counts) or `row 3` (the first data row is 1)."""
    value: dict[str, Any]

    @property
    def origin(self) -> str:
        """File and position, for messages."""
        return f"{self.file} {self.position}"


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: where it is, what is wrong, what to do."""

    file: str
    position: str
    message: str
    hint: str

    @property
    def origin(self) -> str:
        """File and position, for messages."""
        return f"{self.file} {self.position}".strip()


class RowError(ValueError):
    """What a format finds wrong with one row."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass
class BadRows:
    """All bad rows, counted, and the first ones kept."""

    count: int = 0
    first: list[BadRow] = field(default_factory=list)

    def add(self, bad: BadRow) -> None:
        """Count one more."""
        self.count += 1
        if len(self.first) < _SHOWN:
            self.first.append(bad)

    def extend(self, bad: Iterable[BadRow]) -> None:
        """Count several more."""
        for each in bad:
            self.add(each)

    def raise_if_any(self, what: str) -> None:
        """Raise StageError (INVALID_DATA) naming the first bad rows; `what` names the field of the spec."""
        if not self.count:
            return
        rows = counted(self.count, "row")
        listed = "; ".join(f"{bad.origin}: {bad.message[:120]}" for bad in self.first)
        more = f"; and {self.count - len(self.first)} more" if self.count > len(self.first) else ""
        raise StageError(
            ExitCode.INVALID_DATA,
            f"{what}: {rows} cannot be used: {listed}{more}",
            self.first[0].hint,
            self.first[0].origin,
        )
