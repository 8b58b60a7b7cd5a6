"""Who may speak for a job: the pod of rank 0 of the attempt that runs now, found by owner uids."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api.job.status import FineTuneJobStatus, StageStatus
from finetune_operator.progress.refusal import Refused
from finetune_operator.progress.sender import check_sender
from finetune_operator.store import Store

JOB_UID = "ftj-1"


def owned(name: str, uid: str, owner: str, **changes: Any) -> dict[str, Any]:
    owners = [{"uid": owner, "controller": True}] if owner else []
    metadata = {"name": name, "namespace": "team-a", "uid": uid, "resourceVersion": "1", "ownerReferences": owners}
    # Labels are anybody's to set: they must not count.
    metadata["labels"] = {"finetune.dev/job-uid": JOB_UID, "batch.kubernetes.io/job-name": "support-x-train-2"}
    return {"metadata": metadata | changes, "spec": {}, "status": {}}


def store() -> Store:
    made = Store()
    made.jobs.put(owned("support-x-train-1", "job-1", JOB_UID))
    made.jobs.put(owned("support-x-train-2", "job-2", JOB_UID))
    made.jobs.put(owned("other-y-train-1", "job-3", "ftj-2"))
    rank_1 = {"annotations": {"batch.kubernetes.io/job-completion-index": "1"}}
    for uid, owner, changes in [
        ("now", "job-2", {}),
        ("before", "job-1", {}),
        ("other", "job-3", {}),
        ("rank-1", "job-2", rank_1),
        ("orphan", "", {}),
        ("lost", "job-9", {}),
    ]:
        made.pods.put(owned(f"pod-{uid}", uid, owner, **changes))
    return made


def status(state: str = "Running") -> FineTuneJobStatus:
    stages = [("Failed", 1), (state, 2)]
    made = [
        StageStatus.from_wire({"name": "train", "attempt": n, "state": s, "jobName": f"support-x-train-{n}"})
        for s, n in stages
    ]
    return FineTuneJobStatus(run=1, stages=made)


def test_rank_0_of_the_running_attempt() -> None:
    check_sender(store(), JOB_UID, status(), "now")


CASES = [
    ("", "Running", 403, "not-a-pod", "projected token"),
    ("unknown", "Running", 403, "foreign-pod", "does not belong to this job"),
    ("other", "Running", 403, "foreign-pod", "does not belong to this job"),
    ("orphan", "Running", 403, "foreign-pod", "does not belong to this job"),
    ("lost", "Running", 403, "foreign-pod", "does not belong to this job"),
    ("before", "Running", 409, "wrong-attempt", "support-x-train-1 is not the attempt that runs now"),
    ("now", "Succeeded", 409, "wrong-attempt", "which is none"),
    ("now", "Stopped", 409, "wrong-attempt", "which is none"),
    ("rank-1", "Running", 403, "wrong-rank", "rank 1 does not speak"),
]


@pytest.mark.parametrize(("pod", "state", "code", "reason", "told"), CASES)
def test_refusals(pod: str, state: str, code: int, reason: str, told: str) -> None:
    with pytest.raises(Refused) as refused:
        check_sender(store(), JOB_UID, status(state), pod)
    assert (refused.value.status, refused.value.reason) == (code, reason)
    assert told in refused.value.message
    assert "\n" not in refused.value.message


def test_a_job_without_attempts_hears_nobody() -> None:
    with pytest.raises(Refused) as refused:
        check_sender(store(), JOB_UID, FineTuneJobStatus(), "now")
    assert refused.value.status == 409
