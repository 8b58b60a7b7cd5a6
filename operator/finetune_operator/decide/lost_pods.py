"""Pods of a node that stays away: nobody confirms their end, and their Job would wait for it for ever. Pure."""

from __future__ import annotations

from datetime import timedelta

from finetune_operator.decide.attempts import fail_attempt, is_active
from finetune_operator.decide.causes import registry
from finetune_operator.decide.diagnosis import Diagnosis
from finetune_operator.decide.draft import Draft
from finetune_operator.decide.types import ForceDelete, PodState, StageRun, StopStage

LOST_AFTER_S = 60
"""Seconds beyond its grace after which a pod being deleted counts as lost: a living kubelet is never so late."""


def remove_lost_pods(draft: Draft) -> None:
    """Remove pods whose deletion nobody confirms, with their Job: only then does its controller let go of them.

    Should such a pod still run somewhere, the fence in storage refuses its writes.
    """
    for run in draft.observed.runs.values():
        lost = [pod for pod in run.pods if _is_lost(draft, pod)]
        if not lost:
            continue
        draft.force_deletes.extend(ForceDelete(pod.name, pod.uid) for pod in lost)
        if run.state != "Terminating":
            draft.stops.append(StopStage(run.job_name, run.uid))
        _next_attempt(draft, run, lost[0])


def _is_lost(draft: Draft, pod: PodState) -> bool:
    if pod.gone_by is None or pod.phase in ("Succeeded", "Failed"):
        return False
    lost_at = pod.gone_by + timedelta(seconds=LOST_AFTER_S)
    if draft.now < lost_at:
        draft.wake(lost_at)
        return False
    return True


def _next_attempt(draft: Draft, run: StageRun, pod: PodState) -> None:
    attempt = draft.newest
    spec = draft.observed.job.spec
    if attempt is None or attempt.job_name != run.job_name or not is_active(attempt) or spec.suspend or spec.cancel:
        return
    cause = registry()["NodeLost"]
    evidence = f"pod {pod.name} did not end within {LOST_AFTER_S} s of its grace: its node does not answer"
    fail_attempt(draft, Diagnosis(cause, evidence, evidence, cause.hint), run)
