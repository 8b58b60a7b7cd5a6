"""What the checks in `data/checks` are given and give, and how they are run.

A check is one module. It passes over the rows as often as it likes, one at a time, and notes which rows to drop or
replace; what it notes takes effect when it is done. Its memory must not grow with the rows: count, keep the first few
(`Found`), and group on disk (`Given.groups`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast

from finetune_api.exit_codes import ExitCode
from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.stages import Finding
from finetune_api.wording import counted
from finetune_runner.data.groups import Groups
from finetune_runner.data.near_duplicates import NearDuplicates
from finetune_runner.data.registry import modules_of
from finetune_runner.data.row_store import Example, RowStore
from finetune_runner.data.rows import Row
from finetune_runner.data.wanted import POOL
from finetune_runner.errors import StageError

Phase = Literal["rows", "splits", "tokens", "versions"]
"""rows: before the split; splits: after it; tokens: with lengths; versions: what judges, against earlier versions."""
Severity = Literal["info", "warning", "error"]
Mode = Literal["off", "warn", "fail", "fix"]
"""off: not run; warn: a finding; fail: the job ends with InvalidData; fix: rows are dropped or replaced."""

TASK_SPLITS = (POOL, "train", "validation", "test")
"""Splits whose answers are those of the job's task; the others are general text."""
HELD_OUT = ("validation", "test", "out_of_domain")
SHOWN = 5
"""Positions of rows that a remark keeps."""
_MESSAGE_LIMIT = 512
_NEEDED = {POOL: "data.train", "validation": "data.validation.source", "test": "data.test.source"}
"""Sources that must keep a row, and the fields that name them."""


@dataclass(frozen=True)
class Remark:
    """What a check says: a Finding, with what the data report shows beside it."""

    check: str
    severity: Severity
    message: str
    rows: int = 0
    positions: Sequence[str] = ()
    """Origins of the first rows concerned."""
    splits: Mapping[str, int] = field(default_factory=dict)
    """Rows concerned, by split."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Numbers for the data report, for example rows by class. Never text of a row."""

    @property
    def finding(self) -> Finding:
        """The short form, for the job's status."""
        return Finding(check=self.check, severity=self.severity, message=self.message[:_MESSAGE_LIMIT], rows=self.rows)


@dataclass(frozen=True)
class Given:
    """What a check sees and may do."""

    store: RowStore
    spec: FineTuneJobSpec
    mode: Mode = "warn"
    context_length: int = 0
    """Of the model, in tokens; 0 = unknown."""
    near: NearDuplicates | None = None
    """Near-duplicates over all splits; from phase `splits` on."""

    def rows(self, *splits: str) -> Iterator[Example]:
        """Rows of the splits as they are before this check, in the order of reading. Repeatable."""
        return self.store.examples(*splits)

    def count(self, split: str) -> int:
        """Rows of a split."""
        return self.store.counts().get(split, 0)

    def drop(self, example: Example) -> None:
        """Leave the row out when the check is done."""
        self.store.note_drop(example.number)

    def replace(self, example: Example, row: Row) -> None:
        """Give the row this content when the check is done."""
        self.store.note_replacement(example.number, row)

    def groups(self) -> Groups:
        """Rows by a key, on disk; use it in a `with`."""
        return self.store.groups()


@dataclass
class Found:
    """Rows that a check objects to: all counted, the first ones kept."""

    rows: int = 0
    positions: list[str] = field(default_factory=list)
    splits: Counter[str] = field(default_factory=Counter)

    def add(self, example: Example, words: str = "") -> None:
        """Count a row; `words` follow its position in messages."""
        self.rows += 1
        self.splits[example.split] += 1
        if len(self.positions) < SHOWN:
            self.positions.append(f"{example.origin} {words}".rstrip())

    def where(self, shown: int = 3) -> str:
        """The first positions, and how many more there are."""
        return listed(self.positions, shown, self.rows)

    def remark(self, check: str, severity: Severity, message: str, facts: Mapping[str, Any] | None = None) -> Remark:
        """What a check says of these rows."""
        return Remark(check, severity, message, self.rows, tuple(self.positions), dict(self.splits), facts or {})


def mode_of(setting: str) -> Mode:
    """The mode that a word of `data.checks` means: `ignore`, `warn`, `fail`, or what is done to the rows."""
    modes: dict[str, Mode] = {"ignore": "off", "warn": "warn", "fail": "fail"}
    return modes.get(setting, "fix")


def judged(
    check: str, given: Given, found: Found, *, what: str, hint: str, fixed: str = "dropped", place: str = ""
) -> list[Remark]:
    """What the check's mode makes of the rows it found: nothing, a warning, a fix that is told, or the end of the job.

    Args:
        check: name for the finding.
        given: knows the mode.
        found: the rows.
        what: words after the number of rows, for example `[answer refuses|answers refuse]` (`wording.agreeing`).
        hint: what to do.
        fixed: what was done to the rows in mode `fix`.
        place: field of the spec or split that the sentence begins with; empty = none.

    Raises:
        StageError: INVALID_DATA in mode `fail` when there is a row.
    """
    if not found.rows or given.mode == "off":
        return []
    start, said = f"{place}: " if place else "", counted(found.rows, what)
    if given.mode == "fail":
        raise StageError(ExitCode.INVALID_DATA, f"{start}{said}: {found.where()}", hint, found.positions[0])
    fix = given.mode == "fix"
    message = f"{start}{said}, {fixed}: {found.where()}" if fix else f"{start}{said}: {found.where()}; {hint}"
    return [found.remark(check, "info" if fix else "warning", message)]


class Check(Protocol):
    """A module of `data/checks`."""

    PHASE: Phase
    ORDER: int

    def mode(self, spec: FineTuneJobSpec) -> Mode:
        """What the job asks this check to do."""

    def check(self, given: Given) -> list[Remark]:
        """Look at the data. Raises StageError (INVALID_DATA) for what cannot be trained on."""


@dataclass(frozen=True)
class CheckRun:
    """One check's outcome."""

    check: str
    mode: Mode
    remarks: list[Remark]
    dropped: Mapping[str, int]
    """Rows by split."""
    replaced: Mapping[str, int]
    """Rows by split."""
    dropped_copies: Mapping[str, int]
    """How often an epoch used the dropped rows, by split."""


def run_checks(
    phase: Phase, store: RowStore, spec: FineTuneJobSpec, context_length: int = 0, near: NearDuplicates | None = None
) -> Iterator[CheckRun]:
    """Run a phase's checks in their order; each sees what the one before left.

    Raises:
        StageError: what a check raises; INVALID_DATA when the checks of phase `rows` leave nothing of a source.
    """
    dropped: dict[str, Counter[str]] = {}
    checks = {name: cast(Check, module) for name, module in modules_of("finetune_runner.data.checks").items()}
    for name, check in sorted(checks.items(), key=lambda item: (item[1].ORDER, item[0])):
        mode = check.mode(spec)
        if phase != check.PHASE or mode == "off":
            continue
        remarks = check.check(Given(store, spec, mode, context_length, near))
        changed = store.apply()
        for split, rows in changed.dropped.items():
            dropped.setdefault(split, Counter())[name] += rows
        if phase == "rows" and changed.dropped:
            _refuse_emptied(store, dropped)
        yield CheckRun(name, mode, remarks, changed.dropped, changed.replaced, changed.dropped_copies)


def _refuse_emptied(store: RowStore, dropped: Mapping[str, Mapping[str, int]]) -> None:
    counts = store.counts()
    for split in dropped:
        if split in counts or split not in _NEEDED:
            continue
        rows = {_setting(check): count for check, count in dropped[split].items()}
        raise StageError(
            ExitCode.INVALID_DATA,
            f"the checks dropped every row of {_NEEDED[split]}: "
            + ", ".join(f"{check} {count}" for check, count in rows.items()),
            "correct the rows, or keep them: " + ", ".join(f"data.checks.{check}: warn" for check in rows),
        )


def _setting(check: str) -> str:
    """The field of data.checks that is a check's: near_duplicates has nearDuplicates."""
    first, *rest = check.split("_")
    return first + "".join(part.title() for part in rest)


def listed(positions: Sequence[str], shown: int = 5, count: int | None = None) -> str:
    """The first positions, and how many more there are of `count`."""
    more = (len(positions) if count is None else count) - min(shown, len(positions))
    return ", ".join(positions[:shown]) + (f" and {more} more" if more else "")
