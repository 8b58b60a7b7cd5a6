"""One metric per module; a module with a METRIC is found by its presence.

Every metric is a function of sums over rows: `rows` gives each row a vector, `value` turns the sum of vectors into the
number. That is all a bootstrap needs, for a mean as for macro-F1: resampling rows is resampling terms of a sum.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from finetune_runner.evaluation.metrics.base import Metric, Settings

__all__ = ["Metric", "Settings", "all_metrics", "metric"]


@cache
def all_metrics() -> dict[str, Metric]:
    """Every metric by its name in the contract."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        declared = getattr(importlib.import_module(f"{__name__}.{module.name}"), "METRIC", None)
        if declared is not None:
            found[declared.name] = declared
    return found


def metric(name: str) -> Metric:
    """The metric of that name. Raises KeyError when there is none."""
    return all_metrics()[name]
