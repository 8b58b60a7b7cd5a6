"""Intervals by bootstrap over test rows (Efron 1979), paired where two systems answered the same rows.

Rows are resampled with replacement 2,000 times; because every metric is a function of sums over rows, one matrix
product gives the sums of all resamples. Percentile intervals at 90 %, so that each end is a one-sided 95 % bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finetune_runner.evaluation.metrics.base import Array, Metric, Settings

RESAMPLES = 2000
CONFIDENCE = 0.90
SEED = 20_240_501
"""Fixed: the same outcomes give the same interval, in every job and on every machine."""
_CELLS_PER_BLOCK = 4_000_000


@dataclass(frozen=True)
class Interval:
    """Point estimate and the ends of the interval."""

    value: float
    low: float
    high: float


def _resampled_sums(terms: Array, resamples: int) -> Array:
    """Sums of `terms` [rows, k] over each resample: [resamples, k]. The same rows are drawn for equal row counts."""
    rows = terms.shape[0]
    random = np.random.default_rng(SEED)
    block = max(1, _CELLS_PER_BLOCK // rows)
    parts = []
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = random.integers(0, rows, size=(size, rows))
        offsets = np.arange(size)[:, None] * rows
        counts = np.bincount((drawn + offsets).ravel(), minlength=size * rows).reshape(size, rows)
        parts.append(counts @ terms)
    return np.concatenate(parts)


def _percentiles(samples: Array, value: float) -> Interval:
    defined = samples[~np.isnan(samples)]
    if defined.size == 0:
        return Interval(value, value, value)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def interval(metric: Metric, terms: Array, settings: Settings, resamples: int = RESAMPLES) -> Interval:
    """The metric of one system with its interval."""
    value = float(metric.value(terms.sum(axis=0), settings))
    return _percentiles(metric.value(_resampled_sums(terms, resamples), settings), value)


def paired_difference(
    metric: Metric, candidate: Array, reference: Array, settings: Settings, resamples: int = RESAMPLES
) -> Interval:
    """Difference candidate - reference in the metric's own unit, resampled with the same rows. Rows are in one order.

    Raises ValueError when the two have different numbers of rows.
    """
    if candidate.shape != reference.shape:
        raise ValueError(f"cannot pair {candidate.shape[0]} rows with {reference.shape[0]}")
    width = candidate.shape[1]
    sums = _resampled_sums(np.concatenate([candidate, reference], axis=1), resamples)

    def difference(both: Array) -> Array:
        return metric.value(both[..., :width], settings) - metric.value(both[..., width:], settings)

    value = float(difference(np.concatenate([candidate.sum(axis=0), reference.sum(axis=0)])))
    return _percentiles(difference(sums), value)


def standard_error(metric: Metric, terms: Array, settings: Settings, resamples: int = RESAMPLES) -> float:
    """Standard deviation of the metric over resamples."""
    samples = metric.value(_resampled_sums(terms, resamples), settings)
    return float(np.nanstd(samples))


def minimum_detectable_gain(metric: Metric, terms: Array, settings: Settings) -> float:
    """Smallest true gain that a test of this size shows with 80 % power at one-sided 95 %.

    (z_0.95 + z_0.80) * SE of the difference (Card et al. 2020, "With Little Power Comes Great Responsibility"). Before
    there is a candidate the SE of the paired difference is taken as that of the baseline: exact for two systems
    of equal variance and correlation 0.5. A share that is 0 or 1 on every row has no spread of its own; it gets that of
    two successes and two failures more (Agresti and Coull 1998).
    """
    error = standard_error(metric, terms, settings)
    rows = terms.shape[0]
    if metric.share:
        share = 2 / (rows + 4)
        error = max(error, (share * (1 - share) / rows) ** 0.5)
    return (1.6449 + 0.8416) * error
