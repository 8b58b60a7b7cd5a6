"""What a metric is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from finetune_api.job.evaluation import Evaluation
from finetune_runner.evaluation.outcomes import Outcome

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    """What metrics need to know of the task."""

    label_path: str | None = None
    schema: dict[str, Any] | None = None
    average: Literal["macro", "micro"] = "macro"
    classes: tuple[str, ...] = ()

    @classmethod
    def of(cls, evaluation: Evaluation, classes: Sequence[str] = ()) -> Settings:
        """Settings of a job; `classes` are the labels that occur in the test split."""
        averages = [m.average for m in evaluation.metrics if m.name == "f1"]
        return cls(
            label_path=evaluation.task.label_path,
            schema=evaluation.task.schema_,
            average=averages[0] if averages else "macro",
            classes=tuple(classes),
        )


@dataclass(frozen=True)
class Metric:
    """One number measured on test.

    `rows(outcomes, settings)` -> [rows, k] terms; `value(sums, settings)` maps sums [..., k] to numbers [...], NaN
    where the metric is not defined. `needs` says whether it reads answers or likelihoods.
    """

    name: str
    needs: Literal["answers", "likelihoods"]
    rows: Callable[[Sequence[Outcome], Settings], Array]
    value: Callable[[Array, Settings], Array]
    share: bool = True
    """Whether values lie between 0 and 1."""


def mean_rows(values: Sequence[float]) -> Array:
    """Terms of a mean: the value and a one per row."""
    terms = np.ones((len(values), 2))
    terms[:, 0] = values
    return terms


def ratio(sums: Array, _settings: Settings) -> Array:
    """First sum over second, NaN for 0/0."""
    numerator, denominator = sums[..., 0], sums[..., 1]
    quotient: Array = np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)
    return quotient
