"""Where training ends: at the planned step, or later while the validation loss still falls. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LOOKED_BACK = 2
"""Evaluations: one of the last two must have been the best, so that a single noisy one ends nothing."""


def still_falls(losses: Sequence[float], minimum_delta: float) -> bool:
    """Whether one of the last two losses lies below all before them by more than `minimum_delta`.

    With nothing to compare it with, a loss is taken to fall.
    """
    before, recent = losses[:-LOOKED_BACK], losses[-LOOKED_BACK:]
    return not before or min(recent) < min(before) - minimum_delta


@dataclass
class Horizon:
    """The last optimiser step, decided when it must be: before a schedule starts to decay, or at the planned end."""

    planned: int
    """Steps without extension."""
    extend_to: int | None = None
    """Most steps with it; None: no extension."""
    decay_steps: int = 0
    """Steps of the schedule's decay, which come after the decision."""
    end: int | None = None
    """The last step, once it is decided; it belongs to the state of the run."""

    def __post_init__(self) -> None:
        if self.extend_to is None:
            self.end = self.planned

    @property
    def most(self) -> int:
        """More steps than this are never done."""
        return self.end or self.extend_to or self.planned

    def expected(self, step: int) -> int:
        """The end as it is known at a step: the planned one, or the last possible one once training goes beyond it."""
        return self.end or (self.planned if step < self.planned else self.most)

    def decides_at(self, step: int) -> bool:
        """Whether an evaluation is due at this step for the decision's sake."""
        if self.end is not None or self.extend_to is None:
            return False
        return step in (self.planned - self.decay_steps, self.extend_to - self.decay_steps)

    def observe(self, step: int, *, falls: bool) -> None:
        """Take an evaluation: the end is decided at the first plateau from the planned decision on."""
        if self.end is not None or self.extend_to is None or step < self.planned - self.decay_steps:
            return
        if step >= self.extend_to - self.decay_steps:
            self.end = self.extend_to
        elif not falls:
            self.end = step + self.decay_steps

    @property
    def at_plateau(self) -> bool:
        """Whether an extended training ended before its last possible step."""
        return self.end is not None and self.end not in (self.planned, self.extend_to)
