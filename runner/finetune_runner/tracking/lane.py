"""One thread and one bounded queue per tracker: training never waits for a tracker, and none of them for another."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from finetune_api.wording import counted
from finetune_runner.tracking.base import End, Entry, Tracker

log = logging.getLogger(__name__)

EVERY_S = 5.0
"""Seconds between two sendings, at the least."""
FIRST_BACKOFF_S = 5.0
LARGEST_BACKOFF_S = 300.0
CLOSE_S = 15.0
"""What the end of a stage waits for its trackers, at the most, all together."""
MOST_WAITING = 20_000
"""Entries kept while a tracker is away; of more the oldest are lost."""
MOST_AT_ONCE = 500
LONGEST_REASON = 200


class Lane:
    """A tracker behind a queue. `start` makes the tracker, in the lane's own thread."""

    def __init__(
        self,
        name: str,
        start: Callable[[], Tracker],
        *,
        every_s: float = EVERY_S,
        first_backoff_s: float = FIRST_BACKOFF_S,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self.name = name
        self._start = start
        self._every_s = every_s
        self._first_backoff_s = first_backoff_s
        self._changed = threading.Condition()
        self._waiting: deque[Entry] = deque(maxlen=most_waiting)
        self._tags: dict[str, str] = {}
        self._end: End | None = None
        self._lost = 0
        self._trouble = ""
        self._done = False
        # A daemon: a tracker that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Take an entry; returns at once."""
        with self._changed:
            if len(self._waiting) == self._waiting.maxlen:
                self._lost += 1
            self._waiting.append(entry)
            self._changed.notify_all()

    def tag(self, tags: Mapping[str, str]) -> None:
        """Take tags; returns at once."""
        with self._changed:
            self._tags |= tags
            self._changed.notify_all()

    def ask_to_close(self, end: End) -> None:
        """Send what waits and end."""
        with self._changed:
            self._end = end
            self._changed.notify_all()

    def join(self, timeout_s: float) -> None:
        """Wait for the lane to end."""
        self._thread.join(max(0.0, timeout_s))

    def problem(self) -> str:
        """What was lost and why; empty when everything arrived. For a lane that was asked to close."""
        with self._changed:
            lost = self._lost + len(self._waiting)
            if self._done and not lost and not self._trouble:
                return ""
            reason = self._trouble or "it did not answer in time"
            return f"{self.name}: {reason}"[:LONGEST_REASON] + (
                f" ({counted(lost, '[entry|entries]')} lost)" if lost else ""
            )

    def _run(self) -> None:
        tracker: Tracker | None = None
        backoff_s = 0.0
        while True:
            entries, tags, end = self._next(backoff_s or self._every_s)
            try:
                if tracker is None:
                    tracker = self._start()
                if tags:
                    tracker.tag(tags)
                if entries:
                    tracker.log(entries)
                if end is not None and not self._more():
                    tracker.close(end)
            except Exception as error:  # noqa: BLE001 - whatever a tracker's library raises, training goes on
                self._give_back(entries, tags, error)
                backoff_s = min(LARGEST_BACKOFF_S, backoff_s * 2 or self._first_backoff_s)
                if end is not None:
                    return
                continue
            backoff_s = 0.0
            with self._changed:
                if self._trouble:
                    log.info("tracker %s answers again", self.name)
                self._trouble = ""
                if end is not None and not self._waiting and not self._tags:
                    self._done = True
                    return

    def _more(self) -> bool:
        with self._changed:
            return bool(self._waiting or self._tags)

    def _next(self, pause_s: float) -> tuple[list[Entry], dict[str, str], End | None]:
        """What to send now: at once at the end, else after a pause, when there is something."""
        with self._changed:
            self._changed.wait_for(lambda: self._end is not None, pause_s)
            self._changed.wait_for(lambda: bool(self._end or self._waiting or self._tags))
            entries = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_AT_ONCE))]
            tags, self._tags = self._tags, {}
            return entries, tags, self._end

    def _give_back(self, entries: Sequence[Entry], tags: Mapping[str, str], error: Exception) -> None:
        with self._changed:
            if not self._trouble:
                log.warning("tracker %s is away, tried again later: %s: %s", self.name, type(error).__name__, error)
            self._trouble = f"{type(error).__name__}: {error}"
            room = (self._waiting.maxlen or 0) - len(self._waiting)
            self._lost += max(0, len(entries) - room)
            self._waiting.extendleft(reversed(entries[max(0, len(entries) - room) :]))
            self._tags = {**tags, **self._tags}


class Tracking:
    """All trackers of a stage. Calls return at once; nothing here ever raises."""

    def __init__(self, lanes: Sequence[Lane], clock: Callable[[], float] = time.time) -> None:
        self._lanes = lanes
        self._clock = clock

    def log(self, step: int, values: Mapping[str, float | None]) -> None:
        """Numbers of an optimiser step; what is not a finite number is left out."""
        finite = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
        if finite:
            entry = Entry(step, finite, self._clock())
            for lane in self._lanes:
                lane.put(entry)

    def tag(self, tags: Mapping[str, str]) -> None:
        """Tags of the run."""
        for lane in self._lanes:
            lane.tag(tags)

    def close(self, end: End, timeout_s: float = CLOSE_S) -> list[str]:
        """Send what waits, within `timeout_s` seconds; returns a line for each tracker that lost something."""
        for lane in self._lanes:
            lane.ask_to_close(end)
        until = time.monotonic() + timeout_s
        for lane in self._lanes:
            lane.join(until - time.monotonic())
        problems = [problem for lane in self._lanes if (problem := lane.problem())]
        for problem in problems:
            log.warning("tracker %s", problem)
        return problems
