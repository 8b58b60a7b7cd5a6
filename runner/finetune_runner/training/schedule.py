"""Early stopping and divergence: pure arithmetic over numbers the loop hands in."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass, field


@dataclass
class EarlyStop:
    """Counts evaluations without improvement. `patience` 0 never stops.

    Between equals the loss decides: a metric that is still at zero says nothing while the model learns.
    """

    patience: int
    minimum_delta: float
    best: float = math.inf
    """Lowest badness so far (`best.Selection.badness`)."""
    loss: float = math.inf
    """Validation loss of the last improvement."""
    without_improvement: int = 0

    def observe(self, badness: float, loss: float) -> bool:
        """Take one evaluation; returns whether training should stop now."""
        falls = badness <= self.best and loss < self.loss - self.minimum_delta
        if falls or badness < self.best - self.minimum_delta:
            self.best, self.loss = badness, loss
            self.without_improvement = 0
        else:
            self.without_improvement += 1
        return bool(self.patience) and self.without_improvement >= self.patience


EXPLODED_FACTOR = 3.0
EXPLODED_STEPS = 5
SMALLEST_REFERENCE = 1.0
"""In nats: a loss near zero would make every later one an explosion."""


def no_number(kind: str, step: int, loss: float) -> str:
    """What is wrong with a loss that is no number."""
    return f"the {kind} loss became {loss} at step {step}"


@dataclass
class DivergenceWatch:
    """Notices a loss that is not a number, or that stays above three times the lowest so far after warm-up.

    `lowest` is of means over five steps, so that one lucky step is not the measure.
    """

    warmup_steps: int
    lowest: float | None = None
    steps_above: int = 0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=EXPLODED_STEPS))

    def observe(self, step: int, loss: float) -> str:
        """Take the loss of one step; returns what is wrong with it, or an empty text."""
        if not math.isfinite(loss):
            return no_number("training", step, loss)
        self.recent.append(loss)
        mean = statistics.fmean(self.recent)
        self.lowest = mean if self.lowest is None else min(self.lowest, mean)
        limit = EXPLODED_FACTOR * max(self.lowest, SMALLEST_REFERENCE)
        self.steps_above = self.steps_above + 1 if step > self.warmup_steps and loss > limit else 0
        if self.steps_above >= EXPLODED_STEPS:
            return (
                f"the training loss stayed above {limit:.3g} (three times its lowest) for {EXPLODED_STEPS} steps "
                f"until step {step}"
            )
        return ""
