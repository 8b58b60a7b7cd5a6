"""What the watches have told: projections in memory, found by name and along the chain of owner uids. No I/O.

Answers to the operator's own writes are put here too, and an older version never replaces a newer one: that is how a
key sees its own writes at once, without waiting for the watch.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Generic, TypeVar

from finetune_api.adapter import Adapter
from finetune_api.adapterversion import AdapterVersion
from finetune_api.base import Contract
from finetune_api.crd import UNSEEN
from finetune_api.finetunejob import FineTuneJob
from finetune_api.gpupool import GPUPool
from finetune_operator.decide.types import Key, NodeState, QueueState
from finetune_operator.field_manager import written_by
from finetune_operator.views import (
    ENDED,
    JobView,
    PodView,
    WorkloadView,
    controller_uid,
    job_view,
    node_view,
    pod_view,
    workload_view,
)

T = TypeVar("T")
C = TypeVar("C", bound=Contract)


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One object."""

    key: Key
    uid: str
    version: int
    """resourceVersion as a number (they are ordered since Kubernetes 1.35); 0 when it is not one."""
    owner: str
    """What the table groups by: a controller's uid, or an adapter's name."""
    value: T


class Table(Generic[T]):
    """Objects of one kind."""

    def __init__(self, project: Callable[[Mapping[str, Any]], T], owner: Callable[[Mapping[str, Any]], str]) -> None:
        """`project` reduces an object; `owner` says what it is grouped by."""
        self._project = project
        self._owner = owner
        self._entries: dict[Key, Entry[T]] = {}
        self._by_owner: dict[str, set[Key]] = {}
        self._by_uid: dict[str, Key] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry[T]]:
        return iter(list(self._entries.values()))

    def get(self, key: Key) -> Entry[T] | None:
        """The object of this name."""
        return self._entries.get(key)

    def find(self, uid: str) -> Entry[T] | None:
        """The object of this uid."""
        key = self._by_uid.get(uid)
        return self._entries.get(key) if key is not None else None

    def owned_by(self, owner: str) -> list[Entry[T]]:
        """All objects of this group, by name."""
        return [self._entries[key] for key in sorted(self._by_owner.get(owner, ()))]

    def put(self, body: Mapping[str, Any]) -> Entry[T]:
        """Take an object over unless a newer version of it is known; returns what is known now."""
        metadata = body["metadata"]
        key = Key(metadata.get("namespace", ""), metadata["name"])
        version = number(metadata.get("resourceVersion"))
        known = self._entries.get(key)
        if known is not None and known.version > version > 0:
            return known
        entry = Entry(key, metadata["uid"], version, self._owner(body), self._project(body))
        self._forget(key)
        self._entries[key] = entry
        self._by_owner.setdefault(entry.owner, set()).add(key)
        self._by_uid[entry.uid] = key
        return entry

    def remove(self, key: Key, uid: str) -> None:
        """The object of this uid is gone; a successor of the same name stays."""
        known = self._entries.get(key)
        if known is not None and known.uid == uid:
            self._forget(key)

    def gone(self, body: Mapping[str, Any]) -> None:
        """An object was deleted; the body is its last state."""
        metadata = body["metadata"]
        self.remove(Key(metadata.get("namespace", ""), metadata["name"]), metadata["uid"])

    def missing_from(self, seen: Mapping[str, int], list_version: int) -> list[Entry[T]]:
        """Objects that a list of (uid, version) no longer has although it is newer than what is known of them."""
        return [entry for entry in self if entry.uid not in seen and 0 < entry.version <= list_version]

    def behind(self, seen: Mapping[str, int]) -> list[str]:
        """Uids of a list that are unknown here, or known in an older version only."""
        known = {entry.uid: entry.version for entry in self}
        return [uid for uid, version in seen.items() if known.get(uid, -1) < version]

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._by_owner.clear()
        self._by_uid.clear()

    def _forget(self, key: Key) -> None:
        known = self._entries.pop(key, None)
        if known is not None:
            self._by_uid.pop(known.uid, None)
            group = self._by_owner[known.owner]
            group.discard(key)
            if not group:
                del self._by_owner[known.owner]


class Pods(Table[PodView]):
    """Pods by the uid of their Job, also those that ended and are gone.

    The Job controller lets go of a pod before it writes the Job's own end, so a pod that is being deleted is gone
    first; but how it ended is why the Job did. Such a pod is remembered until its Job goes.
    """

    def __init__(self, job_exists: Callable[[str], bool]) -> None:
        """Start empty; `job_exists` says whether a Job of this uid is known."""
        super().__init__(pod_view, controller_uid)
        self._job_exists = job_exists
        self._ended: dict[str, dict[str, Entry[PodView]]] = {}

    def owned_by(self, owner: str) -> list[Entry[PodView]]:
        """All pods of a Job, by name; those that are gone last."""
        return [*super().owned_by(owner), *self._ended.get(owner, {}).values()]

    def gone(self, body: Mapping[str, Any]) -> None:
        """A pod was deleted; the body is its last state."""
        self.put(body)
        super().gone(body)

    def remove(self, key: Key, uid: str) -> None:
        """The pod of this uid is gone."""
        known = self.get(key)
        if (
            known is not None
            and known.uid == uid
            and known.value.state.phase in ENDED
            and self._job_exists(known.owner)
        ):
            self._ended.setdefault(known.owner, {})[uid] = known
        super().remove(key, uid)

    def forget_job(self, uid: str) -> None:
        """A Job is gone, and with it the reason to remember its pods."""
        self._ended.pop(uid, None)

    def clear(self) -> None:
        """Forget everything."""
        super().clear()
        self._ended.clear()


class Jobs(Table[JobView]):
    """Jobs by the uid of their FineTuneJob."""

    def __init__(self) -> None:
        """Start empty, with the table of their pods."""
        super().__init__(job_view, controller_uid)
        self.pods = Pods(lambda uid: self.find(uid) is not None)

    def remove(self, key: Key, uid: str) -> None:
        """The Job of this uid is gone."""
        super().remove(key, uid)
        self.pods.forget_job(uid)


class Workloads(Table[WorkloadView]):
    """Kueue's Workloads by the uid of their Job, and by the LocalQueue they wait in."""

    def __init__(self) -> None:
        """Start empty."""
        super().__init__(workload_view, controller_uid)
        self._waiting: dict[str, dict[Key, WorkloadView]] = {}

    def put(self, body: Mapping[str, Any]) -> Entry[WorkloadView]:
        """Take a Workload over unless a newer version of it is known; returns what is known now."""
        entry = super().put(body)
        if entry.value.waits:
            self._waiting.setdefault(_group(entry.key.namespace, entry.value.queue), {})[entry.key] = entry.value
        return entry

    def clear(self) -> None:
        """Forget everything."""
        super().clear()
        self._waiting.clear()

    def first_in(self, namespace: str, queue: str, count: int) -> list[Entry[WorkloadView]]:
        """The first so many of those that wait in a LocalQueue."""
        waiting = self._waiting.get(_group(namespace, queue), {})
        first = heapq.nsmallest(count, waiting.items(), key=lambda item: item[1].order)
        return [self._entries[key] for key, _ in first]

    def state_of(self, job_uid: str) -> QueueState | None:
        """What Kueue says of a Job, with its place in the queue; None when it has no Workload."""
        found = self.owned_by(job_uid)
        if not found:
            return None
        entry = found[-1]
        if not entry.value.waits:
            return entry.value.state
        order = entry.value.order
        ahead = sum(
            other.order < order for other in self._waiting[_group(entry.key.namespace, entry.value.queue)].values()
        )
        return replace(entry.value.state, position=ahead + 1)

    def _forget(self, key: Key) -> None:
        known = self._entries.get(key)
        if known is not None and known.value.waits:
            group = _group(key.namespace, known.value.queue)
            waiting = self._waiting[group]
            del waiting[key]
            if not waiting:
                del self._waiting[group]
        super()._forget(key)


class Parsed(Generic[C]):
    """An object of ours: the wire form without what we never read, parsed when first asked for."""

    def __init__(self, kind: type[C], body: Mapping[str, Any]) -> None:
        """Keep a copy without managedFields."""
        self._kind = kind
        self.written_by = written_by(body["metadata"])
        metadata = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
        self.wire: dict[str, Any] = {**body, "metadata": metadata}
        if self.wire.get("status", {}).get("observedGeneration") == UNSEEN:
            # The CRD's default, not written by anybody: merge patches must not leave out what only the model has.
            del self.wire["status"]

    @cached_property
    def model(self) -> C:
        """The parsed object. Raises pydantic.ValidationError for one of an older contract."""
        return self._kind.from_wire(self.wire)


def number(resource_version: object) -> int:
    """A resourceVersion as a number; 0 when it is not one (then the latest arrival counts)."""
    return int(resource_version) if isinstance(resource_version, str) and resource_version.isdigit() else 0


def _group(*parts: object) -> str:
    return "/".join(str(part) for part in parts)


def adapter_group(namespace: str, adapter: str) -> str:
    """The group of everything that names this Adapter."""
    return _group(namespace, adapter)


def _by_adapter_of_job(body: Mapping[str, Any]) -> str:
    reference = body.get("spec", {}).get("output", {}).get("adapterRef", {})
    return adapter_group(body["metadata"].get("namespace", ""), reference.get("name", ""))


def _by_adapter_of_version(body: Mapping[str, Any]) -> str:
    return adapter_group(body["metadata"].get("namespace", ""), body.get("spec", {}).get("adapter", ""))


class Store:
    """All tables."""

    def __init__(self) -> None:
        """Start empty."""
        self.epoch = 0
        self.kueue = False
        """Whether the cluster has Kueue, whose Workloads are then watched too."""
        self.finetune_jobs: Table[Parsed[FineTuneJob]] = Table(
            lambda body: Parsed(FineTuneJob, body), _by_adapter_of_job
        )
        self.pools: Table[Parsed[GPUPool]] = Table(lambda body: Parsed(GPUPool, body), lambda body: "")
        self.adapters: Table[Parsed[Adapter]] = Table(lambda body: Parsed(Adapter, body), lambda body: "")
        self.versions: Table[Parsed[AdapterVersion]] = Table(
            lambda body: Parsed(AdapterVersion, body), _by_adapter_of_version
        )
        self.jobs = Jobs()
        self.pods = self.jobs.pods
        self.nodes: Table[NodeState] = Table(node_view, lambda body: "")
        self.workloads = Workloads()

    def clear(self) -> None:
        """Forget everything; what was observed before is of another epoch."""
        self.epoch += 1
        tables: Iterable[Table[Any]] = (
            self.finetune_jobs,
            self.pools,
            self.adapters,
            self.versions,
            self.jobs,
            self.pods,
            self.nodes,
            self.workloads,
        )
        for table in tables:
            table.clear()

    def owner_of_job(self, body: Mapping[str, Any]) -> Key | None:
        """The FineTuneJob whose uid controls this Job."""
        owner = self.finetune_jobs.find(controller_uid(body))
        return owner.key if owner is not None else None

    def owner_of_pod(self, body: Mapping[str, Any]) -> Key | None:
        """The FineTuneJob a pod belongs to: pod -> uid of its Job -> uid of that Job's controller."""
        job = self.jobs.find(controller_uid(body))
        owner = self.finetune_jobs.find(job.owner) if job is not None else None
        return owner.key if owner is not None else None
