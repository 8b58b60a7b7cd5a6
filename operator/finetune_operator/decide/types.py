"""Values that `decide` takes and returns. No Kubernetes, no I/O: both executors (cluster and local) speak them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

from finetune_api.adapter import Adapter
from finetune_api.adapterversion import AdapterVersion
from finetune_api.finetunejob import FineTuneJob
from finetune_api.gpupool import GPUPool
from finetune_api.job.status import FineTuneJobStatus, Resolved
from finetune_api.stages import Progress, StageTask


@dataclass(frozen=True, order=True)
class Key:
    """Identity of a FineTuneJob in the queue."""

    namespace: str
    name: str


@dataclass(frozen=True)
class PodState:
    """What is known of one pod of a stage, reduced to what diagnosis needs."""

    name: str
    index: int = 0
    phase: Literal["Pending", "Running", "Succeeded", "Failed", "Unknown"] = "Pending"
    exit_code: int | None = None
    reason: str = ""
    """Of the terminated container (OOMKilled, Error), else of the pod (NodeLost)."""
    message: str = ""
    """Termination message: a StageReport as JSON, or what the kubelet says."""
    waiting_reason: str = ""
    waiting_message: str = ""
    unschedulable: str = ""
    """Message of PodScheduled=False, reason Unschedulable."""
    evicted: str = ""
    """Message of a pod that the kubelet evicted; its container says only that it was killed."""
    disruption: str = ""
    """Reason of condition DisruptionTarget: PreemptionByScheduler, DeletionByTaintManager, EvictionByEvictionAPI ..."""
    terminating: bool = False
    gone_by: datetime | None = None
    """When a pod that is being deleted should have been gone: its grace has passed then."""
    uid: str = ""
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True)
class QueueState:
    """What Kueue says of a Job that it holds back: its Workload, reduced to what a person asks about."""

    name: str = ""
    """The LocalQueue."""
    quota_reserved: bool = False
    reason: str = ""
    """Of condition QuotaReserved=False: Pending, Inadmissible ..."""
    message: str = ""
    """Of the same condition: what is lacking, in Kueue's words."""
    position: int = 0
    """Place among those that wait in the same LocalQueue, from 1; 0 when it does not wait there."""
    evicted: str = ""
    """Reason of condition Evicted=True: Preempted, ClusterQueueStopped, Deactivated ..."""
    evicted_message: str = ""
    pending_checks: tuple[str, ...] = ()
    """Admission checks that are not ready."""
    active: bool = True
    """False: Kueue, or a person, has taken it out of its queue for good."""
    past_admitted_s: float = 0.0
    """Seconds it was admitted before the current admission."""


@dataclass(frozen=True)
class NodeState:
    """A node, reduced to what decides whether a pool's pods can run there."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[tuple[str, str, str], ...] = ()
    """(key, value, effect) of those that keep pods away."""
    extended_resources: Mapping[str, int] = field(default_factory=dict)
    """Allocatable amounts of resources with a domain in their name, such as nvidia.com/gpu."""
    ready: bool = False
    cordoned: bool = False


@dataclass(frozen=True)
class StageRun:
    """The Job (or local process) of one attempt of one stage."""

    job_name: str
    uid: str
    state: Literal["Queued", "Pending", "Running", "Succeeded", "Failed", "Terminating"]
    """Terminating: deletion was asked for and pods may still run."""
    pods: tuple[PodState, ...] = ()
    queue: QueueState | None = None
    """None: Kueue has made no Workload for it."""
    created_at: datetime | None = None
    started_at: datetime | None = None
    """When the Job was last allowed to run; a Job that waits in a queue has none."""
    finished_at: datetime | None = None


@dataclass(frozen=True)
class Observed:
    """Everything a decision rests on."""

    job: FineTuneJob
    pools: tuple[GPUPool, ...] = ()
    adapter: Adapter | None = None
    versions: tuple[AdapterVersion, ...] = ()
    """All versions of the job's adapter."""
    warm_start: AdapterVersion | None = None
    """The version that method.warmStartFrom names, of whatever adapter; None when there is none."""
    runs: Mapping[str, StageRun] = field(default_factory=dict)
    """By job name: the children whose controller uid is the job's."""
    progress: Progress | None = None
    """What the running attempt said last, where the executor hears it itself. In a cluster any replica does, and what
    it writes comes in as `job.status.live`."""
    kueue: bool = False
    """Whether the cluster has Kueue."""
    allow_file_sources: bool = False
    """True only without a cluster: file:// is refused in clusters."""


@dataclass(frozen=True)
class StartStage:
    """Create the Job of this attempt. Idempotent: the name is a function of (uid, run, stage, attempt)."""

    job_name: str
    task: StageTask
    resolved: Resolved
    nodes: int = 1
    gpus_per_node: int = 0


@dataclass(frozen=True)
class StopStage:
    """Delete a child, by uid, giving its pods time to save a checkpoint."""

    job_name: str
    uid: str
    grace_s: int = 0


@dataclass(frozen=True)
class ForceDelete:
    """Remove a pod whose node no longer answers, by uid. Its writes are fenced in storage, should it still run."""

    pod: str
    uid: str


@dataclass(frozen=True)
class Event:
    """A Kubernetes Event to be."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True)
class Decision:
    """What to do, in the order of the fields: the status first (write ahead), then everything it announces."""

    status: FineTuneJobStatus
    adapter: Adapter | None = None
    """To be created when it does not exist (never overwritten)."""
    starts: tuple[StartStage, ...] = ()
    stops: tuple[StopStage, ...] = ()
    force_deletes: tuple[ForceDelete, ...] = ()
    version: AdapterVersion | None = None
    """To be created; an existing one of the same name with our origin is adopted."""
    events: tuple[Event, ...] = ()
    wake_at: datetime | None = None


class Executor(Protocol):
    """Carries decisions out: one over the cluster's API, one over local processes."""

    async def observe(self, key: Key) -> Observed | None:
        """What is known of the job now; None when it does not exist."""

    async def act(self, observed: Observed, decision: Decision) -> None:
        """Write the status, then the children. Raises when the world moved on; the key is then tried again."""
