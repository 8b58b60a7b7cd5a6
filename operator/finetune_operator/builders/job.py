"""The Job of one attempt of one stage. Pure."""

from __future__ import annotations

from typing import Any

from finetune_operator.builders.names import PRIORITY_LABEL, QUEUE_LABEL, child_labels, owner_reference
from finetune_operator.builders.pod import is_heavy, pod_template
from finetune_operator.builders.progress import ProgressEndpoint
from finetune_operator.decide.types import StartStage


def _queue_labels(start: StartStage) -> dict[str, str]:
    """What Kueue reads from a Job. Stages on the CPU need no quota of GPUs and do not queue for it."""
    compute = start.task.spec.compute
    if compute.queue is None or not is_heavy(start):
        return {}
    return {QUEUE_LABEL: compute.queue} | ({PRIORITY_LABEL: compute.priority_class} if compute.priority_class else {})


def stage_job(start: StartStage, progress: ProgressEndpoint | None = None) -> dict[str, Any]:
    """One failed rank ends the gang, and retries belong to the operator: hence no back-off of the Job's own.

    `progress`: where its pods push their progress; None where nobody listens.
    """
    task = start.task
    queue = _queue_labels(start)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": start.job_name,
            "namespace": task.job.namespace,
            "labels": child_labels(task) | queue,
            "ownerReferences": [owner_reference(task)],
        },
        "spec": {
            "completionMode": "Indexed",
            "completions": start.nodes,
            "parallelism": start.nodes,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            # Kueue admits a queued Job by clearing this; the operator never writes it again.
            **({"suspend": True} if queue else {}),
            "template": pod_template(start, progress),
        },
    }
