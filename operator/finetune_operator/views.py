"""Projections: what is kept of Jobs, pods, nodes and Workloads, a few hundred bytes each. Pure."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, cast

from finetune_operator.builders.names import QUEUE_LABEL
from finetune_operator.decide.types import NodeState, PodState, QueueState, StageRun

INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
TRACKING_FINALIZER = "batch.kubernetes.io/job-tracking"
PodPhase = Literal["Pending", "Running", "Succeeded", "Failed", "Unknown"]
_PHASES = frozenset({"Pending", "Running", "Succeeded", "Failed", "Unknown"})
ENDED = frozenset({"Succeeded", "Failed"})
"""Phases of a pod that runs no more."""


@dataclass(frozen=True)
class JobView:
    """A Kubernetes Job."""

    namespace: str
    name: str
    uid: str
    nodes: int
    deleting: bool
    suspended: bool
    queued: bool
    """Whether it goes through a queue, which may take its pods back and let it run again."""
    outcome: Literal["", "Succeeded", "Failed"]
    ended_pods: int
    """Pods the Job controller has counted as ended."""
    created_at: datetime | None
    started_at: datetime | None
    """When its pods were last allowed to run; Kueue takes it back when it suspends the Job."""
    finished_at: datetime | None


@dataclass(frozen=True)
class PodView:
    """A pod of a stage."""

    uid: str
    state: PodState
    deleted_at: datetime | None = None
    """When its deletion was asked for."""
    tracked: bool = False
    """Whether its Job has yet to count its end; a Job that is suspended lets go of its pods first."""


@dataclass(frozen=True)
class WorkloadView:
    """A Workload of Kueue, whoever made it: the others are those in front in the queue."""

    uid: str
    queue: str
    """The LocalQueue."""
    waits: bool
    """Whether it stands in the queue: active, unfinished, without quota."""
    order: tuple[int, float, str]
    """Kueue's order in a queue, first come first: priority, then age."""
    state: QueueState
    """Without the position, which is a matter of the others."""


def parse_time(text: object) -> datetime | None:
    """A Kubernetes timestamp."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC) if isinstance(text, str) else None


def controller_uid(body: Mapping[str, Any]) -> str:
    """Uid of the controlling owner; empty when there is none."""
    for owner in body.get("metadata", {}).get("ownerReferences") or []:
        if owner.get("controller"):
            return str(owner.get("uid", ""))
    return ""


def _condition(body: Mapping[str, Any], kind: str, status: str = "True") -> Mapping[str, Any]:
    for condition in body.get("status", {}).get("conditions") or []:
        if condition.get("type") == kind and condition.get("status") == status:
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
        queued=QUEUE_LABEL in (metadata.get("labels") or {}),
        outcome="Succeeded" if complete else "Failed" if failed else "",
        ended_pods=int(status.get("succeeded") or 0) + int(status.get("failed") or 0),
        created_at=parse_time(metadata.get("creationTimestamp")),
        started_at=parse_time(status.get("startTime")),
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
    gone_by = parse_time(metadata.get("deletionTimestamp"))
    grace = timedelta(seconds=metadata.get("deletionGracePeriodSeconds") or 0)
    return PodView(
        uid=metadata["uid"],
        deleted_at=gone_by - grace if gone_by is not None else None,
        tracked=TRACKING_FINALIZER in (metadata.get("finalizers") or []),
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
            evicted=str(status.get("message") or "evicted") if status.get("reason") == "Evicted" else "",
            disruption=disruption,
            terminating="deletionTimestamp" in metadata,
            gone_by=gone_by,
            uid=metadata["uid"],
            created_at=parse_time(metadata.get("creationTimestamp")),
            started_at=parse_time(ended.get("startedAt") or running.get("startedAt")),
            finished_at=parse_time(ended.get("finishedAt")),
        ),
    )


def workload_view(body: Mapping[str, Any]) -> WorkloadView:
    """Reduce a Workload; the members read here are the same in every version of its API."""
    metadata, spec, status = body["metadata"], body.get("spec", {}), body.get("status", {})
    pending, evicted = _condition(body, "QuotaReserved", "False"), _condition(body, "Evicted")
    queue, created_at = str(spec.get("queueName", "")), parse_time(metadata.get("creationTimestamp"))
    reserved, active = bool(_condition(body, "QuotaReserved")), spec.get("active", True)
    return WorkloadView(
        uid=metadata["uid"],
        queue=queue,
        waits=active and not reserved and not _condition(body, "Finished"),
        order=(-int(spec.get("priority") or 0), created_at.timestamp() if created_at else 0.0, metadata["uid"]),
        state=QueueState(
            name=queue,
            quota_reserved=reserved,
            reason=str(pending.get("reason", "")),
            message=str(pending.get("message", "")),
            evicted=str(evicted.get("reason", "")),
            evicted_message=str(evicted.get("message", "")),
            pending_checks=tuple(
                str(check.get("name", ""))
                for check in status.get("admissionChecks") or []
                if check.get("state") != "Ready"
            ),
            active=active,
            past_admitted_s=float(status.get("accumulatedPastExecutionTimeSeconds") or 0),
        ),
    )


_KEEPS_AWAY = frozenset({"NoSchedule", "NoExecute"})


def node_view(body: Mapping[str, Any]) -> NodeState:
    """Reduce a node. What changes with every heartbeat is not in it; the same labels are kept once for all nodes."""
    metadata, spec, status = body["metadata"], body.get("spec", {}), body.get("status", {})
    allocatable = status.get("allocatable") or {}
    return NodeState(
        name=metadata["name"],
        labels={sys.intern(key): sys.intern(value) for key, value in (metadata.get("labels") or {}).items()},
        taints=tuple(
            (taint["key"], taint.get("value") or "", taint["effect"])
            for taint in spec.get("taints") or []
            # A cordoned node has a taint that says so too; it is told as what it is.
            if taint["effect"] in _KEEPS_AWAY and taint["key"] != "node.kubernetes.io/unschedulable"
        ),
        extended_resources={
            sys.intern(name): int(amount)
            for name, amount in allocatable.items()
            if "/" in name and str(amount).isdigit()  # extended resources are whole numbers
        },
        ready=bool(_condition(body, "Ready")),
        cordoned=bool(spec.get("unschedulable")),
    )


def current_pods(job: JobView, pods: Sequence[PodView]) -> list[PodView]:
    """Pods since the Job was last allowed to run: those that a queue took back may still be around.

    They are told by their deletion, before which the Job lets go of them: a Job's startTime may be a second later than
    its first pods. A Job without a queue runs once.
    """
    if job.suspended or not job.queued:
        return list(pods)
    return [pod for pod in pods if not _was_taken_back(pod, job.started_at)]


def _was_taken_back(pod: PodView, since: datetime | None) -> bool:
    return pod.deleted_at is not None and not pod.tracked and (since is None or pod.deleted_at <= since)


def is_settled(job: JobView, pods: Sequence[PodView]) -> bool:
    """Whether all ended pods that the Job counts are known with their end: the two watches run apart."""
    if not job.outcome:
        return True
    return sum(pod.state.phase in ENDED for pod in current_pods(job, pods)) >= job.ended_pods


def stage_run(job: JobView, pods: Sequence[PodView], queue: QueueState | None = None) -> StageRun:
    """The attempt as `decide` sees it."""
    states = tuple(sorted((pod.state for pod in current_pods(job, pods)), key=lambda pod: (pod.index, pod.name)))
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
        queue=queue,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
    )
