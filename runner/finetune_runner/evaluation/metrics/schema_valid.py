"""schemaValid: the whole answer is JSON and satisfies evaluation.task.schema."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_runner.evaluation.labels import MISSING, strict_json
from finetune_runner.evaluation.metrics.base import Array, Metric, Settings, mean_rows, ratio
from finetune_runner.evaluation.outcomes import Outcome


def _rows(outcomes: Sequence[Outcome], settings: Settings) -> Array:
    from finetune_runner.json_schema import problem_with, schema_validator

    validator = schema_validator(settings.schema or {})

    def valid(text: str) -> bool:
        value = strict_json(text)
        return value is not MISSING and not problem_with(validator, value)

    return mean_rows([float(valid(o.text or "")) for o in outcomes])


METRIC = Metric(name="schemaValid", needs="answers", rows=_rows, value=ratio)
