"""schemaValid: the whole answer is JSON and satisfies evaluation.task.schema."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_runner.evaluation.labels import MISSING, strict_json
from finetune_runner.evaluation.metrics.base import Array, Metric, Settings, mean_rows, ratio
from finetune_runner.evaluation.outcomes import Outcome


def _rows(outcomes: Sequence[Outcome], settings: Settings) -> Array:
    import jsonschema
    from referencing import Registry

    schema = settings.schema or {}
    # An empty registry: a `$ref` to another document is an error, never a download.
    validator = jsonschema.validators.validator_for(schema)(schema, registry=Registry())

    def valid(text: str) -> bool:
        value = strict_json(text)
        return value is not MISSING and bool(validator.is_valid(value))

    return mean_rows([float(valid(o.text or "")) for o in outcomes])


METRIC = Metric(name="schemaValid", needs="answers", rows=_rows, value=ratio)
