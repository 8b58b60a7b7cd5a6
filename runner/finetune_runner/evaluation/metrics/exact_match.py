"""exactMatch: the answer is the expected one, as JSON value where both are JSON, else as text without outer space."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_runner.evaluation.labels import MISSING, strict_json
from finetune_runner.evaluation.metrics.base import Array, Metric, Settings, mean_rows, ratio
from finetune_runner.evaluation.outcomes import Outcome


def _matches(expected: str, text: str) -> bool:
    wanted, got = strict_json(expected), strict_json(text)
    if wanted is not MISSING and got is not MISSING:
        return bool(wanted == got)
    return expected.strip() == text.strip()


def _rows(outcomes: Sequence[Outcome], _settings: Settings) -> Array:
    return mean_rows([float(_matches(o.expected, o.text or "")) for o in outcomes])


METRIC = Metric(name="exactMatch", needs="answers", rows=_rows, value=ratio)
