"""Projections: what is kept of Kubernetes Jobs and pods, a few hundred bytes each. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, cast

from finetune_operator.decide.types import PodState, StageRun

INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
PodPhase = Literal["Pending", "Running", "Succeeded", "Failed", "Unknown"]
_PHASES = frozenset({"Pending", "Running", "Succeeded", "Failed", "Unknown"})


@dataclass(frozen=True)
class JobView:
    """A Kubernetes Job."""

    namespace: str
    name: str
    uid: str
    nodes: int
    deleting: bool
    suspended: bool
    outcome: Literal["", "Succeeded", "Failed"]
    ended_pods: int
    """Pods the Job controller has counted as ended."""
    queue_message: str
    created_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True)
class PodView:
    """A pod of a stage."""

    uid: str
    state: PodState


def parse_time(text: object) -> datetime | None:
    """A Kubernetes timestamp."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC) if isinstance(text, str) else None


def controller_uid(body: Mapping[str, Any]) -> str:
    """Uid of the controlling owner; empty when there is none."""
    for owner in body.get("metadata", {}).get("ownerReferences") or []:
        if owner.get("controller"):
            return str(owner.get("uid", ""))
    return ""


def _condition(body: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    for condition in body.get("status", {}).get("conditions") or []:
        if condition.get("type") == kind and condition.get("status") == "True":
            return cast(Mapping[str, Any], condition)
    return {}


def job_view(body: Mapping[str, Any]) -> JobView:
    """Reduce a Job."""
    metadata, spec, status = body["metadata"], body.get("spec", {}), body.get("status", {})
    complete, failed = _condition(body, "Complete"), _condition(body, "Failed")
    end = complete or failed
    return JobView(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        nodes=int(spec.get("completions") or 1),
        deleting="deletionTimestamp" in metadata,
        suspended=bool(spec.get("suspend")),
        outcome="Succeeded" if complete else "Failed" if failed else "",
        ended_pods=int(status.get("succeeded") or 0) + int(status.get("failed") or 0),
        queue_message=str(_condition(body, "Suspended").get("message", "")),
        created_at=parse_time(metadata.get("creationTimestamp")),
        finished_at=parse_time(status.get("completionTime") or end.get("lastTransitionTime")),
    )


def pod_view(body: Mapping[str, Any]) -> PodView:
    """Reduce a pod."""
    metadata, status = body["metadata"], body.get("status", {})
    container: Mapping[str, Any] = next(iter(status.get("containerStatuses") or []), {})
    state = container.get("state") or {}
    ended, waiting, running = state.get("terminated") or {}, state.get("waiting") or {}, state.get("running") or {}
    unschedulable = ""
    disruption = ""
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("reason") == "Unschedulable":
            unschedulable = str(condition.get("message", "")) or "unschedulable"
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            disruption = str(condition.get("reason", "")) or "DisruptionTarget"
    phase = status.get("phase", "Pending")
    return PodView(
        uid=metadata["uid"],
        state=PodState(
            name=metadata["name"],
            index=int((metadata.get("annotations") or {}).get(INDEX_ANNOTATION, 0)),
            phase=cast(PodPhase, phase if phase in _PHASES else "Unknown"),
            exit_code=ended.get("exitCode"),
            reason=str(ended.get("reason") or status.get("reason") or ""),
            message=str(ended.get("message") or status.get("message") or ""),
            waiting_reason=str(waiting.get("reason", "")),
            waiting_message=str(waiting.get("message", "")),
            unschedulable=unschedulable,
            disruption=disruption,
            terminating="deletionTimestamp" in metadata,
            gone_by=parse_time(metadata.get("deletionTimestamp")),
            uid=metadata["uid"],
            created_at=parse_time(metadata.get("creationTimestamp")),
            started_at=parse_time(ended.get("startedAt") or running.get("startedAt")),
            finished_at=parse_time(ended.get("finishedAt")),
        ),
    )


def is_settled(job: JobView, pods: Sequence[PodView]) -> bool:
    """Whether all ended pods that the Job counts are known with their end: the two watches run apart."""
    if not job.outcome:
        return True
    return sum(pod.state.phase in ("Succeeded", "Failed") for pod in pods) >= job.ended_pods


def stage_run(job: JobView, pods: Sequence[PodView]) -> StageRun:
    """The attempt as `decide` sees it."""
    states = tuple(sorted((pod.state for pod in pods), key=lambda pod: (pod.index, pod.name)))
    state: Literal["Queued", "Pending", "Running", "Succeeded", "Failed", "Terminating"]
    if job.deleting:
        state = "Terminating"
    elif job.outcome == "Succeeded":
        state = "Succeeded"
    elif job.outcome == "Failed":
        state = "Failed"
    elif job.suspended:
        state = "Queued"
    else:
        started = any(pod.phase in ("Running", "Succeeded", "Failed") for pod in states)
        # A gang runs when all of it runs; until then decide must see which pods are missing.
        waits = any(pod.phase == "Pending" for pod in states)
        state = "Running" if started and not waits else "Pending"
    return StageRun(
        job_name=job.name,
        uid=job.uid,
        state=state,
        pods=states,
        queue_message=job.queue_message,
        created_at=job.created_at,
        finished_at=job.finished_at,
    )
