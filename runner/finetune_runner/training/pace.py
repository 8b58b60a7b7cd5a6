"""How fast optimiser steps go."""

from __future__ import annotations

import statistics
from collections import deque

NEWEST = 50
"""Steps that the present pace is taken from."""


class Pace:
    """Time and tokens of the steps of this attempt, of all ranks together."""

    def __init__(self) -> None:
        self._newest_s: deque[float] = deque(maxlen=NEWEST)
        self._newest_tokens: deque[int] = deque(maxlen=NEWEST)
        self._in_steps_s = 0.0
        self._tokens = self._labelled = 0

    def note(self, took_s: float, tokens: int, labelled: int) -> None:
        """Take a step: tokens without padding, and those of them that are learned."""
        self._newest_s.append(took_s)
        self._newest_tokens.append(tokens)
        self._in_steps_s += took_s
        self._tokens += tokens
        self._labelled += labelled

    @property
    def step_s(self) -> float | None:
        """Median of the newest steps; None before the first."""
        return statistics.median(self._newest_s) if self._newest_s else None

    @property
    def newest_tokens_per_second(self) -> float | None:
        """Of the newest steps, without padding; None before the first."""
        took_s = sum(self._newest_s)
        return sum(self._newest_tokens) / took_s if took_s else None

    @property
    def tokens_per_second(self) -> float:
        """Without padding; 0 when no step was done."""
        return self._per_second(self._tokens)

    @property
    def labelled_tokens_per_second(self) -> float:
        """Of labelled tokens; 0 when no step was done."""
        return self._per_second(self._labelled)

    def _per_second(self, count: int) -> float:
        return count / self._in_steps_s if self._in_steps_s else 0.0
