"""A store in which jobs train."""

from __future__ import annotations

from typing import Any

from finetune_api.stages import Progress
from finetune_operator.store import Store
from tests.decide.world import START, job_dict


def training_job(name: str) -> dict[str, Any]:
    """A FineTuneJob whose training runs; its uid is `uid-<name>`."""
    wire = job_dict()
    wire["metadata"] = {"name": name, "namespace": "team-a", "uid": f"uid-{name}", "resourceVersion": "5"}
    stage = {"name": "train", "attempt": 1, "state": "Running", "jobName": f"{name}-train-1"}
    wire["status"] = {"run": 1, "phase": "Training", "progress": "1/5 train", "stages": [stage]}
    return wire


def add_job(store: Store, name: str) -> dict[str, Any]:
    """A training job with its Job and its pod, whose uid is `pod-<name>`."""
    wire = training_job(name)
    store.finetune_jobs.put(wire)
    for table, child, uid, owner in (
        (store.jobs, f"{name}-train-1", f"job-{name}", f"uid-{name}"),
        (store.pods, f"{name}-train-1-0", f"pod-{name}", f"job-{name}"),
    ):
        owners = [{"uid": owner, "controller": True}]
        metadata = {
            "name": child,
            "namespace": "team-a",
            "uid": uid,
            "resourceVersion": "1",
            "ownerReferences": owners,
        }
        table.put({"metadata": metadata, "spec": {}, "status": {}})
    return wire


def progress(percent: float = 10.0, **changes: Any) -> Progress:
    """What a training pod says."""
    said = Progress(stage="train", attempt=1, phase="training", percent=percent, eta_seconds=600.0, updated_at=START)
    return said.model_copy(update=changes)
