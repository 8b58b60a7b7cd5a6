"""Why a Job that Kueue holds back does not run: its Workload's words as a reason, a sentence and a hint. Pure.

The sentences of Kueue (pkg/scheduler, pkg/controller/core of 0.16) are no API. Those that are known get a reason of
their own; any other is shown as it is, under `WaitingForQuota`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from finetune_operator.decide.types import Observed, QueueState, StageRun

TAKEN_WITHIN_S = 30
"""Kueue makes the Workload of a Job within a second; later than this something is in its way."""
SHOWN_POSITIONS = 10
"""Places shown exactly: with every job that leaves a queue, at most so many others are written anew."""


@dataclass(frozen=True)
class Wait:
    """What a person is told."""

    reason: str
    message: str
    hint: str = ""


@dataclass(frozen=True)
class _Sign:
    """Words of Kueue and what they mean."""

    words: re.Pattern[str]
    reason: str
    hint: str


_SIGNS = (
    _Sign(
        re.compile(r"LocalQueue \S+ (doesn't exist|is terminating or missing)"),
        "QueueNotFound",
        "Name a LocalQueue of this namespace in compute.queue (kubectl get localqueues), or ask the platform team for "
        "one; it is picked up when it appears.",
    ),
    _Sign(
        re.compile(r"ClusterQueue \S+ (doesn't exist|not found|is terminating or missing)"),
        "QueueNotFound",
        "The LocalQueue leads to a ClusterQueue that does not exist: ask the platform team to create it.",
    ),
    _Sign(
        re.compile(r"Queue \S+ is (inactive|stopped)"),
        "QueueStopped",
        "The queue admits nothing now: ask the platform team why (kubectl describe clusterqueue).",
    ),
    _Sign(
        re.compile(r"namespace doesn't match ClusterQueue selector"),
        "QueueNotAllowed",
        "The ClusterQueue does not take jobs of this namespace: ask the platform team to change its namespaceSelector.",
    ),
    _Sign(
        re.compile(r"resource \S+ unavailable in ClusterQueue"),
        "QueueLacksResource",
        "Pods ask for a resource of which the queue has no quota: the platform team covers it in the ClusterQueue, or "
        "leaves it out of quotas (resources.excludeResourcePrefixes of Kueue; docs/queues.md).",
    ),
    _Sign(
        re.compile(r"maximum capacity"),
        "QuotaTooSmall",
        "The queue can never hold this job: ask for fewer GPUs (compute.nodes, compute.gpusPerNode) or a larger quota.",
    ),
    _Sign(
        re.compile(r"doesn't match node affinity|untolerated taint"),
        "FlavorMismatch",
        "No flavor of the queue is the pool's kind of node: choose another pool or queue, or ask the platform team.",
    ),
)
_WAITING = _Sign(
    re.compile(""),
    "WaitingForQuota",
    "Nothing to do: it starts when quota is free. A higher compute.priorityClass goes first.",
)
_LACKS = re.compile(r"insufficient unused quota for (\S+) in flavor (\S+), (\S+?) more needed")
_PREEMPTED = re.compile(r"Preempted to accommodate a workload \([^)]*\) due to ([^;]+).*")
_PREFIX = re.compile(r"^couldn't assign flavors to pod set \S+: ")


def explain_queue(run: StageRun, wanted: str, observed: Observed, now: datetime, *, stopping: bool) -> Wait:
    """Why the Job does not run now.

    `wanted` is the queue it was sent to; empty for a stage that needs none. `stopping`: pods that the queue took the
    GPUs from still save their work.
    """
    queue = run.queue
    if not wanted and (queue is None or not queue.name):
        return Wait(
            "HeldBack",
            f"Job {run.job_name} needs no queue and is suspended all the same",
            "Where Kueue manages jobs without a queue (manageJobsWithoutQueueName), the namespace needs a LocalQueue "
            "named default: ask the platform team.",
        )
    if queue is None:
        return _without_workload(run, observed, now)
    name = queue.name or wanted
    if stopping:
        return Wait(_eviction_reason(queue), f"pods save a checkpoint and end: {_evicted(queue)}", _resumes(queue))
    if queue.quota_reserved:
        checks = ", ".join(queue.pending_checks)
        message = f"quota of queue {name} is reserved; " + (f"admission checks: {checks}" if checks else "pods start")
        return Wait("Admitted", message)
    if not queue.active:
        why = queue.evicted_message or queue.message or "its Workload is not active"
        return Wait(
            "QueueDeactivated",
            f"taken out of queue {name}: {why}",
            "Suspend and resume the job (spec.suspend) to queue it again once the cause is mended.",
        )
    sign = next((sign for sign in _SIGNS if sign.words.search(queue.message)), _WAITING)
    place = _place(queue, name)
    # Until the next look at the queue, the lack of quota has the words of the eviction.
    lacking = "waits for its turn" if queue.message == queue.evicted_message else _lacking(queue.message)
    if queue.evicted and sign is _WAITING:
        return Wait(_eviction_reason(queue), f"{place}; {lacking}; {_evicted(queue)}", _resumes(queue))
    return Wait(sign.reason, f"{place}; {lacking}", sign.hint)


def _without_workload(run: StageRun, observed: Observed, now: datetime) -> Wait:
    compute = observed.job.spec.compute
    if not observed.kueue:
        return Wait(
            "KueueMissing",
            f"compute.queue is {compute.queue}, but this cluster has no Kueue: nobody admits Job {run.job_name}",
            "Leave compute.queue out, or ask the platform team to install Kueue; the job goes on by itself then.",
        )
    age_s = (now - run.created_at).total_seconds() if run.created_at else 0.0
    if age_s < TAKEN_WITHIN_S:
        return Wait("Queued", f"waits for Kueue to take Job {run.job_name} into queue {compute.queue}")
    missing = f"is there a WorkloadPriorityClass {compute.priority_class}? " if compute.priority_class else ""
    return Wait(
        "NotTakenByKueue",
        f"Kueue has not taken Job {run.job_name} into queue {compute.queue}",
        f"{missing}Does Kueue run, with the integration batch/job, and does it manage this namespace? "
        "kubectl describe job says more.",
    )


def _place(queue: QueueState, name: str) -> str:
    if not queue.position:
        return f"in queue {name}"
    if queue.position > SHOWN_POSITIONS:
        return f"behind {SHOWN_POSITIONS} or more in queue {name}"
    return f"position {queue.position} in queue {name}"


def _lacking(message: str) -> str:
    """For example `waits for 2 of nvidia.com/gpu in flavor a100-80: insufficient unused quota`."""
    found = _LACKS.findall(message)
    if found:
        wanted = " or ".join(f"{amount} of {resource} in flavor {flavor}" for resource, flavor, amount in found)
        return f"waits for {wanted}: insufficient unused quota"
    return _PREFIX.sub("", message) or "waits for its turn"


def _evicted(queue: QueueState) -> str:
    """For example `preempted: prioritization in the ClusterQueue`, without the uids of Kueue's sentence."""
    return _PREEMPTED.sub(r"preempted: \1", queue.evicted_message) or queue.evicted or "the queue took the GPUs back"


def _eviction_reason(queue: QueueState) -> str:
    return "QueueStopped" if queue.evicted.endswith("QueueStopped") else queue.evicted or "Preempted"


def _resumes(queue: QueueState) -> str:
    who = "A more urgent job has the GPUs: nothing" if queue.evicted == "Preempted" else "Nothing"
    return f"{who} to do: it resumes from its last checkpoint when quota is free, at no cost of a retry."
