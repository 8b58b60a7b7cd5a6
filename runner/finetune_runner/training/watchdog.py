"""Hang detection inside the pod: a collective that waits for a dead rank never returns and never raises."""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import StageError

SMALLEST_LIMIT_S = 600.0
MEDIANS = 20
LOOK_EVERY_S = 5.0


@dataclass
class Patience:
    """How long a step may take: ten minutes, or twenty times the median of the last steps if that is longer."""

    last_beat_s: float
    steps_s: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    smallest_limit_s: float = SMALLEST_LIMIT_S

    def beat(self, now_s: float) -> None:
        """A step has ended."""
        self.steps_s.append(now_s - self.last_beat_s)
        self.last_beat_s = now_s

    def alive(self, now_s: float) -> None:
        """Something other than a step went on, for example a batch of the validation."""
        self.last_beat_s = now_s

    @property
    def limit_s(self) -> float:
        """Seconds without a step that count as a hang."""
        return max(self.smallest_limit_s, MEDIANS * statistics.median(self.steps_s) if self.steps_s else 0.0)

    def hung(self, now_s: float) -> bool:
        """Whether the current step takes too long."""
        return now_s - self.last_beat_s > self.limit_s


class Watchdog:
    """A thread that calls `on_hang` once when no beat came for too long. Use it as a context manager.

    `on_hang` must end the process: the thread that hangs cannot.
    """

    def __init__(
        self,
        on_hang: Callable[[StageError], None],
        smallest_limit_s: float = SMALLEST_LIMIT_S,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._on_hang = on_hang
        self._look_every_s = look_every_s
        self._patience = Patience(time.monotonic(), smallest_limit_s=smallest_limit_s)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self) -> None:
        """Say that a step has ended."""
        self._patience.beat(time.monotonic())

    def alive(self) -> None:
        """Say that something other than a step goes on."""
        self._patience.alive(time.monotonic())

    def __enter__(self) -> Watchdog:
        self.alive()  # whatever went before, for example loading the model, was no step
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(self._look_every_s):
            if self._patience.hung(time.monotonic()):
                self._on_hang(
                    StageError(
                        ExitCode.HUNG,
                        f"no training step ended for {self._patience.limit_s:.0f} s",
                        hint="the next attempt resumes from the newest checkpoint; look for a dead rank",
                    )
                )
                return
