"""Names and labels of children: functions of identity, so that a second attempt to create one meets the first."""

from __future__ import annotations

import base64
import hashlib

from finetune_api.stages import StageTask

HASH_CHARACTERS = 7

MANAGED_BY = "app.kubernetes.io/managed-by"
OPERATOR = "finetune-operator"
JOB_LABEL = "finetune.dev/job"
STAGE_LABEL = "finetune.dev/stage"
ATTEMPT_LABEL = "finetune.dev/attempt"
RUN_LABEL = "finetune.dev/run"
UID_LABEL = "finetune.dev/job-uid"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
TASK_ANNOTATION = "finetune.dev/task"


def job_name(job: str, uid: str, run: int, stage: str, attempt: int) -> str:
    """`<job>-<hash of uid and run>-<stage>-<attempt>`: at most 63 characters with a pod index for jobs of 40."""
    digest = hashlib.sha256(f"{uid}/{run}".encode()).digest()
    return f"{job}-{base64.b32encode(digest).decode().lower()[:HASH_CHARACTERS]}-{stage}-{attempt}"


def child_labels(task: StageTask) -> dict[str, str]:
    """Labels for people and for list requests. What belongs to whom is decided by owner uids, never by these."""
    return {
        MANAGED_BY: OPERATOR,
        JOB_LABEL: task.job.name,
        STAGE_LABEL: task.stage,
        ATTEMPT_LABEL: str(task.attempt),
        RUN_LABEL: str(task.job.run),
        UID_LABEL: task.job.uid,
    }


def owner_reference(task: StageTask) -> dict[str, object]:
    """The FineTuneJob as controller: children go when it goes."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "name": task.job.name,
        "uid": task.job.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
