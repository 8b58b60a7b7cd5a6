"""Smallest gain a test split can tell from chance, before anything was measured."""

from __future__ import annotations

import math

Z_ONE_SIDED_95, Z_POWER_80 = 1.6449, 0.8416
WORST_SHARE = 0.5
SHARE_METRICS = frozenset({"exactMatch", "schemaValid", "f1", "rougeL"})
"""Metrics between 0 and 1: their spread is at most that of a share of one half."""


def minimum_detectable_gain(metric: str, test_rows: int) -> float | None:
    """Gain that is found with 80 % power at one-sided 95 %, at the worst share; None for a metric without bounds.

    (z_0.95 + z_0.80) x the standard error of the paired difference (Card et al. 2020): sqrt(2 (1 - c) p (1 - p) / rows)
    with p one half and, as nothing is known of two systems yet, their answers correlated by c = 0.5. After baseline the
    runner computes it from the rows themselves (`results.baseline.minimumDetectableGain`).
    """
    if metric not in SHARE_METRICS or test_rows < 1:
        return None
    error = math.sqrt(WORST_SHARE * (1 - WORST_SHARE) / test_rows)
    return (Z_ONE_SIDED_95 + Z_POWER_80) * error
