"""data-report.json: what the prepared data are, what was found in them, dropped and changed. Never text of a row."""

from __future__ import annotations

from typing import Any

from finetune_api.stages import StageTask
from finetune_runner.data.outcome import Prepared


def data_document(task: StageTask, prepared: Prepared, data_digest: str, origin: str) -> dict[str, Any]:
    """All that the page shows, as plain data; `origin` is the run that prepared the data, empty = this one."""
    labels = next(
        (r["facts"]["classes"] for c in prepared.checks for r in c["remarks"] if "classes" in r["facts"]), None
    )
    document: dict[str, Any] = {
        "format": 1,
        "job": task.job.to_wire(),
        "adapter": task.adapter,
        "model": task.spec.model.source,
        "dataDigest": data_digest,
        "testDigest": prepared.splits["test"],
        "preparedBy": origin,
        "seed": task.spec.training.seed,
        "sources": prepared.sources,
        "rows": prepared.rows,
        "dropped": prepared.dropped,
        "trainTokens": prepared.train_tokens,
        "maxLength": task.spec.training.max_length,
        "lengths": prepared.lengths,
        "lengthBuckets": prepared.buckets,
        "checks": prepared.checks,
        "remarks": prepared.remarks,
        "transformations": prepared.transformations,
    }
    if labels is not None:
        document["labels"] = labels
    return document
