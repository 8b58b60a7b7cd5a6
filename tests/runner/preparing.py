"""Runs of stage prepare, for its tests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune_api.stages import Finding, JobIdentity, PrepareResult
from finetune_runner.context import StageContext
from finetune_runner.data.prepared import SPLITS, load_split
from finetune_runner.data.rows import Row
from finetune_runner.errors import StageError
from finetune_runner.stages import prepare
from finetune_runner.storage import join
from tests.runner.stores import PrepareWorld

CLASSES = {"task": {"type": "classification"}, "metrics": [{"name": "f1"}]}


JSON_TASK = {
    "task": {
        "type": "classification",
        "labelPath": "$.category",
        "schema": {
            "type": "object",
            "required": ["category"],
            "properties": {"category": {"enum": ["billing", "shipping", "access"]}},
        },
    }
}


def run(world: PrepareWorld, data: dict[str, Any], **spec: Any) -> tuple[PrepareResult, list[Finding], StageContext]:
    return _prepared(world.open(world.task(data, **spec)))


def _prepared(context: StageContext) -> tuple[PrepareResult, list[Finding], StageContext]:
    results, findings = prepare.run(context)
    assert results.prepare is not None
    return results.prepare, findings, context


def refused(world: PrepareWorld, data: dict[str, Any], **spec: Any) -> StageError:
    context = world.open(world.task(data, **spec))
    with pytest.raises(StageError) as caught:
        prepare.run(context)
    assert not context.storage.list(join(context.task.run_uri, "")), "something half-written is visible"
    assert caught.value.hint
    return caught.value


def said(findings: list[Finding], check: str) -> Finding:
    return next(finding for finding in findings if finding.check == check)


def splits_of(context: StageContext) -> dict[str, list[Row]]:
    return {name: load_split(context, name) for name in SPLITS}


def numbered_run(
    world: PrepareWorld, data: dict[str, Any], number: int = 1, **spec: Any
) -> tuple[PrepareResult, list[Finding], StageContext]:
    """Stage prepare of a job's run of this number."""
    task = world.task(data, **spec)
    job = JobIdentity(namespace="team", name="job", uid="uid-1", run=number)
    context = world.open(task.model_copy(update={"job": job}))
    context.fence.claim()
    return _prepared(context)


def document(context: StageContext, name: str) -> Any:
    """A document that prepare wrote, from JSON."""
    return json.loads(context.storage.read_bytes(join(context.task.run_uri, "prepare", name)))
