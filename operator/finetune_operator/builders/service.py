"""The headless Service through which the pods of a gang find each other. Pure."""

from __future__ import annotations

from typing import Any

from finetune_operator.builders.names import child_labels, owner_reference
from finetune_operator.builders.pod import MASTER_PORT
from finetune_operator.decide.types import StartStage

JOB_NAME_LABEL = "batch.kubernetes.io/job-name"


def gang_service(start: StartStage) -> dict[str, Any] | None:
    """None for a single pod. Ranks meet before they are ready, so unready addresses are published."""
    if start.nodes < 2:
        return None
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": start.job_name,
            "namespace": start.task.job.namespace,
            "labels": child_labels(start.task),
            "ownerReferences": [owner_reference(start.task)],
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {JOB_NAME_LABEL: start.job_name},
            "ports": [{"name": "rendezvous", "port": MASTER_PORT, "targetPort": MASTER_PORT, "protocol": "TCP"}],
        },
    }
