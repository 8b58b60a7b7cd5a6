"""kopf's watches feed the store and the queue. Handlers change nothing in the cluster: no annotation, no finalizer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import kopf

from finetune_operator.api import (
    ADAPTER_VERSIONS,
    ADAPTERS,
    FINETUNE_JOBS,
    GPU_POOLS,
    JOBS,
    KUEUE_GROUP,
    NODES,
    PODS,
    Resource,
    workloads,
)
from finetune_operator.connection import Connection
from finetune_operator.decide.pools import is_member
from finetune_operator.decide.queueing import SHOWN_POSITIONS
from finetune_operator.decide.types import Key, NodeState
from finetune_operator.reconcile import Item
from finetune_operator.settings import MANAGED_SELECTOR
from finetune_operator.store import Entry, Store, Table, adapter_group

logger = logging.getLogger(__name__)

CREDENTIALS_LIFETIME = timedelta(minutes=5)
"""Service account tokens are rotated within the hour: they are read again this often."""


@dataclass(frozen=True)
class Source:
    """One watched kind: where it is kept, and which keys a change of it concerns."""

    resource: Resource
    table: Table[Any]
    concerns: Callable[[Mapping[str, Any]], list[Item]]
    selector: str = ""
    """Label selector: only our own Jobs and pods are looked at. Whose they are is still a matter of owner uids."""


class Life:
    """One life of the watches. What comes from one that is over is not heard: a stuck kopf may still speak."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """`loop` is where store and queue live."""
        self.over = False
        self._loop = loop

    def tell(self, callback: Callable[..., object], *args: object) -> None:
        """Have the loop call back, from any thread; calls arrive in their order."""
        self._loop.call_soon_threadsafe(self._heard, callback, *args)

    def _heard(self, callback: Callable[..., object], *args: object) -> None:
        if not self.over:
            callback(*args)


class Watches:
    """What is watched, and what follows from a change."""

    def __init__(self, store: Store, enqueue: Callable[[Item], None]) -> None:
        """Changes go into the store; the keys they concern are handed to `enqueue`."""
        self.complete = False
        """Whether the store holds all there is: until then nothing may be decided."""
        self._store = store
        self._enqueue = enqueue
        self._announced: dict[str, object] = {}
        """By uid: what the others were last told of a node or a Workload, so that a heartbeat wakes nobody."""
        self._shown: dict[tuple[str, str], list[Item]] = {}
        """By namespace and LocalQueue: the jobs whose place in it is shown exactly."""
        self.kueue_version = ""
        self._sources = (
            Source(GPU_POOLS, store.pools, self._of_pool),
            Source(ADAPTERS, store.adapters, self._of_adapter),
            Source(ADAPTER_VERSIONS, store.versions, self._of_version),
            Source(FINETUNE_JOBS, store.finetune_jobs, self._of_finetune_job),
            Source(JOBS, store.jobs, self._of_job, MANAGED_SELECTOR),
            Source(PODS, store.pods, self._of_pod, MANAGED_SELECTOR),
            Source(NODES, store.nodes, self._of_node),
        )

    @property
    def sources(self) -> tuple[Source, ...]:
        """What is watched: Kueue's Workloads only where the cluster has Kueue."""
        if not self.kueue_version:
            return self._sources
        return (*self._sources, Source(workloads(self.kueue_version), self._store.workloads, self._of_workload))

    def use_kueue(self, version: str) -> None:
        """From the next start of the watches on, watch Workloads in this version of Kueue's API; empty: not at all."""
        self.kueue_version = version
        self._store.kueue = bool(version)

    def changed(self, source: Source, kind: str | None, body: Mapping[str, Any]) -> None:
        """An object appeared, changed or went: update the store, then wake whom it concerns.

        kopf handles no event before it has indexed every object of every kind.
        """
        self.complete = True
        if kind == "DELETED":
            metadata = body["metadata"]
            self._announced.pop(metadata["uid"], None)  # its end is news to all whom it concerns
            items = source.concerns(body)
            self._announced.pop(metadata["uid"], None)
            source.table.gone(body)
        else:
            source.table.put(body)
            items = source.concerns(body)
        for item in items:
            self._enqueue(item)

    def forget(self) -> None:
        """The watches have ended: what they told may be half of the world by now."""
        self.complete = False
        self._announced.clear()
        self._shown.clear()
        self._store.clear()

    def registry(self, connection: Connection, life: Life) -> kopf.OperatorRegistry:
        """Handlers for one life of kopf, which runs in a thread of its own.

        Callbacks arrive in the order of the calls: all objects first, as kopf indexes before it handles events.
        """
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry, id="login")
        def login(**_: Any) -> kopf.ConnectionInfo:
            return login_info(connection)

        for source in self.sources:
            self._register(registry, source, life)
        return registry

    def _register(self, registry: kopf.OperatorRegistry, source: Source, life: Life) -> None:
        resource = source.resource
        where = (resource.group, resource.version, resource.plural)

        @kopf.index(*where, registry=registry, id=f"index-{resource.plural}")
        async def index(body: kopf.Body, **_: Any) -> None:
            life.tell(source.table.put, dict(body))

        @kopf.on.event(*where, registry=registry, id=f"event-{resource.plural}")
        async def event(event: Mapping[str, Any], **_: Any) -> None:
            life.tell(self.changed, source, event.get("type"), event["object"])

    def concerned(self, source: Source, entry: Entry[Any]) -> list[Item]:
        """Whom it concerns that an entry is gone, found out without the object itself."""
        if source.resource == NODES:
            return self._pools_of(entry.value)
        if source.resource == GPU_POOLS:
            return []
        if source.resource.group == KUEUE_GROUP:
            return [*self._owner_of(entry.owner), *self._waiting_in(entry.key.namespace, entry.value.queue)]
        if source.resource in (ADAPTERS, ADAPTER_VERSIONS):
            name = entry.owner.partition("/")[2] if source.resource == ADAPTER_VERSIONS else entry.key.name
            return [Item("adapter", Key(entry.key.namespace, name))]
        owner = entry.owner
        if source.resource == PODS:
            job = self._store.jobs.find(owner)
            owner = job.owner if job is not None else ""
        found = self._store.finetune_jobs.find(owner)
        return [Item("job", found.key)] if found is not None else []

    def _of_finetune_job(self, body: Mapping[str, Any]) -> list[Item]:
        metadata = body["metadata"]
        return [Item("job", Key(metadata["namespace"], metadata["name"]))]

    def _of_job(self, body: Mapping[str, Any]) -> list[Item]:
        key = self._store.owner_of_job(body)
        return [Item("job", key)] if key is not None else []

    def _of_pod(self, body: Mapping[str, Any]) -> list[Item]:
        key = self._store.owner_of_pod(body)
        return [Item("job", key)] if key is not None else []

    def _of_node(self, body: Mapping[str, Any]) -> list[Item]:
        """Pools the node is in, or was; none when only its heartbeat has changed."""
        uid = body["metadata"]["uid"]
        entry = self._store.nodes.find(uid)
        before = self._announced.get(uid)
        if entry is None or entry.value == before:
            return []
        self._announced[uid] = entry.value
        items = set(self._pools_of(entry.value))
        if isinstance(before, NodeState):
            items.update(self._pools_of(before))
        return sorted(items)

    def _pools_of(self, node: NodeState) -> list[Item]:
        found = []
        for entry in self._store.pools:
            selector = entry.value.wire.get("spec", {}).get("nodeSelector", {})
            if is_member(selector, node):
                found.append(Item("pool", entry.key))
        return found

    def _of_workload(self, body: Mapping[str, Any]) -> list[Item]:
        """The Job it is for; and those behind it in its queue, when it joined, left or moved."""
        metadata = body["metadata"]
        entry = self._store.workloads.find(metadata["uid"])
        if entry is None:
            return []
        view = entry.value
        items = self._owner_of(entry.owner)
        place = (view.queue, view.waits, view.order)
        if self._announced.get(metadata["uid"]) != place:
            self._announced[metadata["uid"]] = place
            items += self._waiting_in(entry.key.namespace, view.queue)
        return items

    def _owner_of(self, job_uid: str) -> list[Item]:
        job = self._store.jobs.find(job_uid)
        owner = self._store.finetune_jobs.find(job.owner) if job is not None else None
        return [Item("job", owner.key)] if owner is not None else []

    def _waiting_in(self, namespace: str, queue: str) -> list[Item]:
        """Jobs whose place in a queue is shown exactly, and those for which that has just ended."""
        first = self._store.workloads.first_in(namespace, queue, SHOWN_POSITIONS + 1)
        shown = [item for entry in first for item in self._owner_of(entry.owner)]
        before = self._shown.pop((namespace, queue), [])
        if shown:
            self._shown[namespace, queue] = shown
        return sorted({*before, *shown})

    def _of_pool(self, body: Mapping[str, Any]) -> list[Item]:
        """The pool itself, jobs that wait to be accepted, and those whose pods wait for its nodes."""
        name = body["metadata"]["name"]
        items = [Item("pool", Key("", name))]
        for entry in self._store.finetune_jobs:
            status = entry.value.wire.get("status", {})
            resolved, stages = status.get("resolved"), status.get("stages")
            waits = resolved and resolved.get("pool") == name and stages and stages[-1].get("state") == "Pending"
            if not resolved or waits:
                items.append(Item("job", entry.key))
        return items

    def _of_adapter(self, body: Mapping[str, Any]) -> list[Item]:
        namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
        jobs = self._store.finetune_jobs.owned_by(adapter_group(namespace, name))
        return [Item("adapter", Key(namespace, name)), *(Item("job", entry.key) for entry in jobs)]

    def _of_version(self, body: Mapping[str, Any]) -> list[Item]:
        namespace, spec = body["metadata"]["namespace"], body.get("spec", {})
        items = [Item("adapter", Key(namespace, spec.get("adapter", "")))]
        job = self._store.finetune_jobs.find(spec.get("origin", {}).get("uid", ""))
        return [*items, Item("job", job.key)] if job is not None else items


def login_info(connection: Connection) -> kopf.ConnectionInfo:
    """Our connection as kopf wants it."""
    token = connection.token()
    return kopf.ConnectionInfo(
        server=connection.server,
        ca_data=connection.ca,
        insecure=connection.insecure,
        certificate_data=connection.certificate,
        private_key_data=connection.key,
        scheme="Bearer" if token else None,
        token=token or None,
        default_namespace=connection.namespace,
        expiration=datetime.now(UTC) + CREDENTIALS_LIFETIME if connection.token_file is not None else None,
    )
