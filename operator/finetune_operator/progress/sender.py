"""Whether a pod may speak for a job now: along the chain of owner uids, never by labels. Pure."""

from __future__ import annotations

from finetune_api.job.status import FineTuneJobStatus
from finetune_operator.decide.attempts import is_active
from finetune_operator.progress.refusal import Refused
from finetune_operator.store import Store


def check_sender(store: Store, job_uid: str, status: FineTuneJobStatus, pod_uid: str) -> None:
    """Raises Refused unless the pod is rank 0 of the attempt of this job that runs now."""
    if not pod_uid:
        raise Refused(403, "not-a-pod", "the token is not bound to a pod; use the projected token of the stage's pod")
    pod = store.pods.find(pod_uid)
    owner = store.jobs.find(pod.owner) if pod is not None else None
    if pod is None or owner is None or owner.owner != job_uid:
        raise Refused(403, "foreign-pod", "the token's pod does not belong to this job (or is not known here yet)")
    newest = status.stages[-1] if status.stages else None
    if newest is None or not is_active(newest) or owner.key.name != newest.job_name:
        running = newest.job_name if newest is not None and is_active(newest) else "none"
        raise Refused(
            409, "wrong-attempt", f"{owner.key.name} is not the attempt that runs now, which is {running}; stop pushing"
        )
    if pod.value.state.index != 0:
        raise Refused(403, "wrong-rank", f"rank {pod.value.state.index} does not speak for the gang, rank 0 does")
