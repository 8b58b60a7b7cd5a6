"""evaluation.json: everything the report shows, as plain data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from finetune_api.stages import EvaluateResult, StageTask
from finetune_runner.data.rows import Row
from finetune_runner.evaluation.bootstrap import Interval
from finetune_runner.evaluation.compare import Field, System, values_of
from finetune_runner.evaluation.labels import label_of
from finetune_runner.evaluation.metrics import Settings, metric
from finetune_runner.evaluation.metrics.f1 import per_class
from finetune_runner.evaluation.outcomes import Outcome
from finetune_runner.report.training import training_document

Document = dict[str, Any]
OTHER = "(other)"
CLASSES_SHOWN = 40


def evaluation_document(
    task: StageTask,
    result: EvaluateResult,
    systems: Field,
    intervals: Mapping[str, Interval],
    names: Sequence[str],
    settings: Settings,
    history: Sequence[Mapping[str, Any]],
) -> Document:
    """All numbers of an evaluation, with what they are about."""
    references: dict[str, System] = {"base": systems.base, **systems.baselines}
    if systems.incumbent is not None:
        references[systems.incumbent.name] = systems.incumbent
    document: Document = {
        "format": 1,
        "job": task.job.to_wire(),
        "adapter": task.adapter,
        "base": task.spec.model.source,
        "method": task.plan.method if task.plan is not None else "",
        "servedAs": result.served_as,
        "rows": result.rows,
        "outOfDomainRows": len(systems.candidate.out_of_domain),
        "testUses": result.test_uses,
        "primary": names[0],
        "best": systems.best,
        "incumbent": result.incumbent,
        "metrics": {name: {"value": i.value, "low": i.low, "high": i.high} for name, i in intervals.items()},
        "references": {name: values_of(system, names, settings) for name, system in references.items()},
        "otherForm": result.other_form,
        "gates": [
            {"gate": gate.to_wire(), "evidence": evidence.to_wire()}
            for gate, evidence in zip(task.gates, result.comparisons, strict=True)
        ],
        "lossCurve": [dict(point) for point in history],
        "training": training_document(task),
    }
    if task.spec.evaluation.task.type == "classification" and len(settings.classes) > 1:
        document["perClass"] = _per_class(systems.candidate.test, settings)
        document["confusion"] = _confusion(systems.candidate.test, settings)
    return document


def _per_class(outcomes: Sequence[Outcome], settings: Settings) -> list[dict[str, Any]]:
    """F1 and number of test rows of each class."""
    values = per_class(metric("f1").rows(outcomes, settings).sum(axis=0), settings)
    true = [label_of(o.expected, settings.label_path) for o in outcomes]
    return [
        {"class": name, "f1": None if np.isnan(value) else float(value), "rows": true.count(name)}
        for name, value in zip(settings.classes, values, strict=True)
    ]


def _confusion(outcomes: Sequence[Outcome], settings: Settings) -> dict[str, Any]:
    """Rows: the true class. Columns: the class said, the last one for anything that is no class of the test split."""
    classes = list(settings.classes)
    columns = {name: position for position, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes) + 1), dtype=int)
    for outcome in outcomes:
        true = columns.get(label_of(outcome.expected, settings.label_path) or "")
        said = columns.get(label_of(outcome.text or "", settings.label_path) or "", len(classes))
        if true is not None:
            counts[true, said] += 1
    return {"classes": classes, "columns": [*classes, OTHER], "counts": counts.tolist()}


def review_rows(test: Sequence[Row], systems: Field, samples: int, seed: int) -> list[dict[str, Any]]:
    """Samples for people: prompt, expected answer, best baseline's and tuned answer. Chosen by seed and content."""
    order = sorted(range(len(test)), key=lambda i: hashlib.sha256(f"{seed}:review:{test[i].id}".encode()).hexdigest())
    best = systems.baselines.get(systems.best)
    return [
        {
            "id": test[index].id,
            "prompt": [dict(message) for message in test[index].prompt],
            "expected": test[index].said,
            "baseline": best.test[index].text if best is not None else None,
            "tuned": systems.candidate.test[index].text,
        }
        for index in order[:samples]
    ]
