"""f1 over the labels that occur in the test split, macro (mean over classes) or micro.

An answer without a label, or with one that never occurs in the test split, is a miss of the true class and no false
alarm of any class in the mean; so a model that invents labels loses recall, not the mean's meaning. Where all answers
name known classes this equals scikit-learn's f1_score(labels=classes, zero_division=nan).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetune_runner.evaluation.labels import label_of
from finetune_runner.evaluation.metrics.base import Array, Metric, Settings
from finetune_runner.evaluation.outcomes import Outcome


def classes_of(expected: Sequence[str], label_path: str | None) -> tuple[str, ...]:
    """The labels of the expected answers, sorted."""
    return tuple(sorted({label for text in expected if (label := label_of(text, label_path)) is not None}))


def _rows(outcomes: Sequence[Outcome], settings: Settings) -> Array:
    index = {name: position for position, name in enumerate(settings.classes)}
    size = len(settings.classes)
    terms = np.zeros((len(outcomes), 3 * size))
    for row, outcome in enumerate(outcomes):
        true = index.get(label_of(outcome.expected, settings.label_path) or "")
        said = index.get(label_of(outcome.text or "", settings.label_path) or "")
        if true is not None and true == said:
            terms[row, true] = 1
            continue
        if said is not None:
            terms[row, size + said] = 1
        if true is not None:
            terms[row, 2 * size + true] = 1
    return terms


def _f1(true_positive: Array, false_positive: Array, false_negative: Array) -> Array:
    denominator = 2 * true_positive + false_positive + false_negative
    values: Array = np.divide(
        2 * true_positive, denominator, out=np.full(denominator.shape, np.nan), where=denominator > 0
    )
    return values


def per_class(sums: Array, settings: Settings) -> Array:
    """F1 of each class, [..., classes]; NaN where a class neither occurs nor is named."""
    size = len(settings.classes)
    return _f1(sums[..., :size], sums[..., size : 2 * size], sums[..., 2 * size :])


def _value(sums: Array, settings: Settings) -> Array:
    size = len(settings.classes)
    if settings.average == "micro":
        parts = [sums[..., start : start + size].sum(axis=-1) for start in (0, size, 2 * size)]
        return _f1(*parts)
    values = per_class(sums, settings)
    defined = ~np.isnan(values)
    count = defined.sum(axis=-1)
    total = np.where(defined, values, 0.0).sum(axis=-1)
    mean: Array = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean


METRIC = Metric(name="f1", needs="answers", rows=_rows, value=_value)
