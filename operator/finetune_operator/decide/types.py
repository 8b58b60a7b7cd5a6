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
    """Of the terminated container (OOMKilled, Error) or of the pod (Evicted)."""
    message: str = ""
    """Termination message: a StageReport as JSON, or what the kubelet says."""
    waiting_reason: str = ""
    waiting_message: str = ""
    unschedulable: str = ""
    """Message of PodScheduled=False, reason Unschedulable."""
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
class StageRun:
    """The Job (or local process) of one attempt of one stage."""

    job_name: str
    uid: str
    state: Literal["Queued", "Pending", "Running", "Succeeded", "Failed", "Terminating"]
    """Terminating: deletion was asked for and pods may still run."""
    pods: tuple[PodState, ...] = ()
    queue_message: str = ""
    created_at: datetime | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True)
class Observed:
    """Everything a decision rests on."""

    job: FineTuneJob
    pools: tuple[GPUPool, ...] = ()
    adapter: Adapter | None = None
    versions: tuple[AdapterVersion, ...] = ()
    """All versions of the job's adapter."""
    runs: Mapping[str, StageRun] = field(default_factory=dict)
    """By job name: the children whose controller uid is the job's."""
    progress: Progress | None = None
    """What the running attempt said last, where the executor hears it itself. In a cluster any replica does, and what
    it writes comes in as `job.status.live`."""
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
