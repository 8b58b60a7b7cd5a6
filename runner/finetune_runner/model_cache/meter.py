"""What the cache tells of the bytes it fetches and hashes: of a large model both take minutes to hours."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import StageError
from finetune_runner.model_cache.lock import Held

REPORT_EVERY_S = 15.0
"""Most seconds between two reports of something that goes on without a new figure."""
_SOURCE_CHARACTERS = 64
_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


class Report(Protocol):
    """Hears how a download goes."""

    def __call__(self, phase: str, *, percent: float, eta_seconds: float | None) -> None:
        """`percent` is of the model's bytes."""


@dataclass(frozen=True)
class Hooks:
    """What the cache needs of the stage that uses it."""

    clock: Callable[[], datetime]
    report: Report
    check_stop: Callable[[], None]
    """Raises when the stage has to stop."""
    wait: Callable[[float], None]
    """Waits some seconds, or until the stage has to stop."""


class Meter:
    """Counts the bytes of all threads of a download or of hashing, tells them, and stops it."""

    def __init__(
        self,
        hooks: Hooks,
        phase: str,
        there: int,
        total: int,
        held: Held | None = None,
    ) -> None:
        self._hooks = hooks
        self._held = held
        self._phase = phase
        self._there = there
        self._done = there
        self._total = total
        self._guard = threading.Lock()
        self._started_at = hooks.clock()
        self._told: tuple[int, datetime] | None = None

    def add(self, count: int) -> None:
        """Count bytes that arrived; negative when some have to come again."""
        self._hooks.check_stop()
        with self._guard:
            self._done += count
            now = self._hooks.clock()
            percent = 100 * self._done // max(self._total, 1)
            if self._told is not None:
                told_percent, told_at = self._told
                if percent == told_percent and (now - told_at).total_seconds() < REPORT_EVERY_S:
                    return
            self._told = (percent, now)
            if self._held is not None:
                self._held.tell(self._done, self._total)
            tell(self._hooks.report, self._phase, self._done, self._total, self._eta_s(now))
        if self._held is not None and self._held.lost:
            raise StageError(
                ExitCode.STORAGE_UNAVAILABLE, "another process took over the download", "nothing: it goes on there"
            )

    def _eta_s(self, now: datetime) -> float | None:
        elapsed_s, arrived = (now - self._started_at).total_seconds(), self._done - self._there
        if elapsed_s <= 0 or arrived <= 0:
            return None
        return round(max(self._total - self._done, 0) * elapsed_s / arrived)


def tell(report: Report, phase: str, done: int = 0, total: int = 0, eta_seconds: float | None = None) -> None:
    """Report a phase with bytes done of a total; without figures where the total is not known (0)."""
    text = f"{phase} {_amounts(done, total)}" if total else phase
    percent = min(100.0, round(100 * done / total, 1)) if total else 0.0
    report(text, percent=percent, eta_seconds=eta_seconds)


def size_text(size: float) -> str:
    """Bytes for people, in decimal units: `16.1 GB`."""
    return _amounts(None, size)


def short(source: str) -> str:
    """The source so that the figures behind it still fit into a phase."""
    return source if len(source) <= _SOURCE_CHARACTERS else f"...{source[-_SOURCE_CHARACTERS:]}"


def _amounts(done: float | None, total: float) -> str:
    """`3.1 of 16.1 GB`, in the unit of the total."""
    unit, factor = next(((name, factor) for name, factor in _UNITS if total >= factor), ("bytes", 1.0))
    digits = 1 if factor > 1 else 0
    whole = f"{total / factor:.{digits}f} {unit}"
    return whole if done is None else f"{done / factor:.{digits}f} of {whole}"
