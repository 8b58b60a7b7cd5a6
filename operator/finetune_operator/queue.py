"""What is due: keys, each at most once, with one timer per key and back-off per key. Workers take from it."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

FIRST_BACKOFF_S = 1.0
LARGEST_BACKOFF_S = 300.0

K = TypeVar("K")


@dataclass
class Schedule(Generic[K]):
    """The bookkeeping, without waiting: times are seconds of whatever clock the caller uses.

    A key is either ready, or being worked on, or waiting for its timer. One that is added while being worked on is
    ready again afterwards, so that no change is missed and no key is worked on twice at once.
    """

    jitter: Callable[[], float] = lambda: 1.0
    """Factor on every back-off, around 1."""
    _ready: dict[K, float] = field(default_factory=dict)
    _working: dict[K, float] = field(default_factory=dict)
    _again: set[K] = field(default_factory=set)
    _timers: dict[K, float] = field(default_factory=dict)
    _heap: list[tuple[float, int, K]] = field(default_factory=list)
    _failures: dict[K, int] = field(default_factory=dict)
    _count: int = 0

    def __len__(self) -> int:
        return len(self._ready)

    def add(self, key: K, now: float) -> None:
        """The key is due now."""
        if key in self._working:
            self._again.add(key)
        else:
            self._ready.setdefault(key, now)

    def add_at(self, key: K, at: float) -> None:
        """The key is due then; replaces its timer."""
        self._timers[key] = at
        self._count += 1
        heapq.heappush(self._heap, (at, self._count, key))

    def take(self, now: float) -> K | None:
        """The key that has been due longest, or None. It is being worked on until `finish`."""
        while self._heap and self._heap[0][0] <= now:
            at, _, key = heapq.heappop(self._heap)
            if self._timers.get(key) == at:
                del self._timers[key]
                self.add(key, now)
        if not self._ready:
            return None
        key = next(iter(self._ready))
        del self._ready[key]
        self._timers.pop(key, None)
        self._working[key] = now
        return key

    def finish(self, key: K, now: float, *, again_at: float | None = None, failed: bool = False) -> None:
        """Work on the key has ended: well (perhaps to be looked at later) or not (again after a back-off)."""
        self._working.pop(key, None)
        if failed:
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            delay = min(LARGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(failures - 1, 20)) * self.jitter()
            self.add_at(key, now + delay)
        else:
            self._failures.pop(key, None)
            if again_at is not None:
                self.add_at(key, max(now, again_at))
        if key in self._again:
            self._again.discard(key)
            self._ready.setdefault(key, now)

    def next_timer(self) -> float | None:
        """When the next timer is due."""
        while self._heap and self._timers.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def longest_work_s(self, now: float) -> float:
        """Seconds the slowest key has been worked on."""
        return max((now - since for since in self._working.values()), default=0.0)

    def clear(self) -> None:
        """Forget what is due; keys being worked on finish."""
        self._ready.clear()
        self._timers.clear()
        self._heap.clear()
        self._failures.clear()
        self._again.clear()


class Workers(Generic[K]):
    """Runs `work(key)` for every due key, several at once, never two for one key.

    `work` returns the number of seconds after which the key is due again, or None. Any exception means back-off.
    """

    def __init__(
        self,
        work: Callable[[K], Awaitable[float | None]],
        count: int,
        schedule: Schedule[K],
        clock: Callable[[], float],
    ) -> None:
        """`clock` in seconds, never stepping back."""
        self._work = work
        self._count = count
        self.schedule = schedule
        self._clock = clock
        self._changed = asyncio.Event()

    def add(self, key: K) -> None:
        """The key is due now."""
        self.schedule.add(key, self._clock())
        self._changed.set()

    def clear(self) -> None:
        """Forget what is due."""
        self.schedule.clear()

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._count):
                group.create_task(self._worker())

    async def _worker(self) -> None:
        while True:
            key = self.schedule.take(self._clock())
            if key is None:
                await self._wait()
                continue
            self._changed.set()
            await self._handle(key)

    async def _wait(self) -> None:
        self._changed.clear()
        due = self.schedule.next_timer()
        timeout_s = None if due is None else max(0.0, due - self._clock())
        # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the event.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()

    async def _handle(self, key: K) -> None:
        try:
            after_s = await self._work(key)
        except Exception as error:  # noqa: BLE001 - one key's trouble must not stop the others; it is retried
            logger.warning("try again later", extra={"key": str(key), "error": f"{type(error).__name__}: {error}"})
            self.schedule.finish(key, self._clock(), failed=True)
        else:
            now = self._clock()
            self.schedule.finish(key, now, again_at=None if after_s is None else now + after_s)
        self._changed.set()
