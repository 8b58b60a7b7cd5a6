"""truncationRate: share of answers that did not end by themselves within evaluation.maxNewTokens."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_runner.evaluation.metrics.base import Array, Metric, Settings, mean_rows, ratio
from finetune_runner.evaluation.outcomes import Outcome


def _rows(outcomes: Sequence[Outcome], _settings: Settings) -> Array:
    return mean_rows([float(o.truncated) for o in outcomes])


METRIC = Metric(name="truncationRate", needs="answers", rows=_rows, value=ratio)
