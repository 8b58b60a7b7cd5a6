"""manifest.json of a version: the deploy unit. All a server, an auditor or the next run needs to know. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from importlib import metadata
from typing import Any

from finetune_api.stages import EvaluateResult, PrepareResult, StageTask, TrainResult
from finetune_runner.evaluation.engines import generation_facts
from finetune_runner.training.loading import base_weights

FORMAT = 1
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "tokenizers", "safetensors")


def library_versions() -> dict[str, str]:
    """Installed versions of what computed the version."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def version_manifest(
    task: StageTask,
    number: int,
    now: datetime,
    files: Mapping[str, Mapping[str, Any]],
    template: str,
    lineage: Any,
    prepared: PrepareResult,
    trained: TrainResult,
    evaluated: EvaluateResult,
) -> dict[str, Any]:
    """The manifest. `base.weights` says which form of the base the adapter was judged on."""
    spec, baseline = task.spec, task.results.baseline
    method = task.plan.method if task.plan is not None else spec.method.type
    return {
        "format": FORMAT,
        "adapter": {"namespace": task.job.namespace, "name": task.adapter, "version": f"v{number}"},
        "createdAt": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "job": task.job.to_wire(),
        "run": {"uri": task.run_uri},
        "base": {
            "source": spec.model.source,
            "revision": prepared.revision,
            "digest": prepared.model_digest,
            "weights": base_weights(task),
        },
        "servedAs": evaluated.served_as,
        "method": method,
        "files": dict(files),
        "promptTemplate": template,
        "generation": generation_facts(spec.evaluation),
        "data": {
            "digest": prepared.data_digest,
            "testDigest": prepared.test_digest,
            "rows": prepared.rows.to_wire(),
            "lineage": lineage,
        },
        "hyperparameters": {**spec.method.to_wire(), **task.training.to_wire()},
        "seed": spec.training.seed,
        "plan": task.plan.to_wire() if task.plan is not None else None,
        "training": trained.to_wire(),
        "evaluation": evaluated.to_wire(),
        "baseline": baseline.to_wire() if baseline is not None else None,
        "gates": [gate.to_wire() for gate in task.gates],
        "parent": task.incumbent.version if task.incumbent is not None else None,
        "warmStartedFrom": task.warm_start.to_wire() if task.warm_start is not None else None,
        "image": task.image,
        "libraries": library_versions(),
        "fingerprint": task.fingerprint,
    }
