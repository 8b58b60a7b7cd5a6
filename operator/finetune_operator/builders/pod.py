"""The pod template of a stage. Passes Pod Security `restricted`. Pure."""

from __future__ import annotations

import json
from typing import Any

from finetune_api.stages import Stage
from finetune_operator.builders.names import TASK_ANNOTATION, child_labels
from finetune_operator.builders.progress import ProgressEndpoint, ca_annotation, push_environment
from finetune_operator.builders.volumes import (
    MODEL_CACHE_PATH,
    SECRETS_PATH,
    TASK_FILE,
    fills_model_cache,
    mounts_model_cache,
    volumes,
)
from finetune_operator.decide.types import StartStage
from finetune_operator.planner.disk import quantity_bytes

HEAVY_STAGES: frozenset[Stage] = frozenset({"baseline", "train", "evaluate"})
"""Stages that run the model: they take the pool's GPUs and `gpuPod`; the others take `cpuPod`."""

USER_ID = 65532
MASTER_PORT = 29500
GRACE_S = 120
TRAIN_GRACE_S = 300
"""Long enough to save a checkpoint of a large model."""

_INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"


def is_heavy(start: StartStage) -> bool:
    """Whether the attempt runs the model. Re-emitting a lost report does not."""
    return start.task.stage in HEAVY_STAGES and start.task.mode == "run"


def _resources(start: StartStage) -> dict[str, Any]:
    pool = start.resolved.pool_spec
    wanted = pool.gpu_pod if is_heavy(start) else pool.cpu_pod
    limits: dict[str, Any] = {"memory": wanted.memory}
    if start.gpus_per_node:
        limits[pool.resource_name] = str(start.gpus_per_node)
    return {"requests": {"cpu": wanted.cpu, "memory": wanted.memory}, "limits": limits}


def _environment(start: StartStage) -> list[dict[str, Any]]:
    variables: list[dict[str, Any]] = [
        {"name": "FINETUNE_SCRATCH", "value": "/scratch"},
        {"name": "FINETUNE_SECRETS", "value": SECRETS_PATH},
        {"name": "HOME", "value": "/scratch"},
        {"name": "FINETUNE_SCRATCH_LIMIT_BYTES", "value": str(quantity_bytes(start.resolved.pool_spec.scratch_size))},
        {"name": "HF_HUB_DISABLE_TELEMETRY", "value": "1"},
    ]
    if mounts_model_cache(start):
        variables.append({"name": "FINETUNE_MODEL_CACHE", "value": MODEL_CACHE_PATH})
        if not fills_model_cache(start):
            variables.append({"name": "FINETUNE_MODEL_CACHE_READ_ONLY", "value": "1"})
    processes = max(1, start.gpus_per_node)
    if is_heavy(start) and start.task.stage == "train" and start.nodes * processes > 1:
        # torchrun reads its arguments from these.
        variables += [
            {"name": "PET_NNODES", "value": str(start.nodes)},
            {"name": "PET_NPROC_PER_NODE", "value": str(processes)},
            {
                "name": "PET_NODE_RANK",
                "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{_INDEX_ANNOTATION}']"}},
            },
            {
                "name": "PET_MASTER_ADDR",
                "value": f"{start.job_name}-0.{start.job_name}" if start.nodes > 1 else "localhost",
            },
            {"name": "PET_MASTER_PORT", "value": str(MASTER_PORT)},
        ]
    return variables


def _placement(start: StartStage) -> dict[str, Any]:
    pool = start.resolved.pool_spec
    # CPU stages stay off GPU nodes; a pool without GPUs is itself the place for them.
    if not is_heavy(start) and pool.gpus_per_node:
        return {}
    placement: dict[str, Any] = {}
    if pool.node_selector:
        placement["nodeSelector"] = dict(pool.node_selector)
    if pool.tolerations:
        placement["tolerations"] = [toleration.to_wire() for toleration in pool.tolerations]
    return placement


def pod_template(start: StartStage, progress: ProgressEndpoint | None = None) -> dict[str, Any]:
    """`spec.template` of the Job of one attempt."""
    task, pool = start.task, start.resolved.pool_spec
    made, mounts = volumes(start, heavy=is_heavy(start), progress=progress is not None)
    container = {
        "name": "stage",
        "image": pool.image,
        "imagePullPolicy": pool.image_pull_policy,
        "command": ["finetune-runner", task.stage, "--task", TASK_FILE],
        "env": _environment(start) + push_environment(task, progress),
        "resources": _resources(start),
        "volumeMounts": mounts,
        "terminationMessagePolicy": "File",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    return {
        "metadata": {
            "labels": child_labels(task),
            "annotations": {
                TASK_ANNOTATION: json.dumps(task.to_wire(), separators=(",", ":"), sort_keys=True),
                **ca_annotation(progress),
            },
        },
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": task.spec.service_account_name,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": TRAIN_GRACE_S if task.stage == "train" else GRACE_S,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER_ID,
                "runAsGroup": USER_ID,
                "fsGroup": USER_ID,
                # The default walks through every file of a claim at every start: minutes on a cache of base models.
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            **_placement(start),
            **({"subdomain": start.job_name} if start.nodes > 1 else {}),
            "containers": [container],
            "volumes": made,
        },
    }
