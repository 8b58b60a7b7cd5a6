"""Where the time of a training goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

Part = Literal["data", "compute", "compilation", "optimizer", "validation", "checkpoint"]


class Stopwatch:
    """Seconds by part, as this rank's main thread spends them.

    A GPU computes while the thread goes on: put the reading of a step's loss, which waits for it, under `compute`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.seconds: dict[Part, float] = dict.fromkeys(get_args(Part), 0.0)

    @contextmanager
    def measure(self, part: Part) -> Iterator[None]:
        """Add the time of the block to a part."""
        began = self._clock()
        try:
            yield
        finally:
            self.seconds[part] += self._clock() - began
