"""The curves of a finished training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.stages import TrainResult


@dataclass(frozen=True)
class Validation:
    """One evaluation: losses in nats per token; the training loss is the mean since the evaluation before."""

    step: int
    loss: float
    train_loss: float | None = None


@dataclass(frozen=True)
class Curve:
    """All evaluations in the order of their steps, the first before step 1, and how training ended."""

    points: Sequence[Validation]
    result: TrainResult

    @classmethod
    def of(cls, history: Sequence[Mapping[str, Any]], result: TrainResult) -> Curve:
        """From train/history.json."""
        return cls([Validation(p["step"], p["validation_loss"], p.get("train_loss")) for p in history], result)

    @property
    def trained(self) -> list[Validation]:
        """Evaluations after at least one step."""
        return [point for point in self.points if point.step > 0]

    @property
    def best(self) -> Validation | None:
        """The evaluation with the lowest loss after at least one step; the first of equals."""
        return min(self.trained, key=lambda point: point.loss, default=None)


def percent(change: float) -> str:
    """A relative change for people."""
    return f"{100 * change:.1f} %"
