"""Observe and act through the API server: one of the two executors of what `decide` decides."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from finetune_api.adapter import Adapter
from finetune_api.adapterversion import AdapterVersion
from finetune_api.common import ObjectMeta
from finetune_api.gpupool import GPUPool
from finetune_operator.api import (
    ADAPTER_VERSIONS,
    ADAPTERS,
    FINETUNE_JOBS,
    JOBS,
    PODS,
    SERVICES,
    Api,
    ApiError,
    Resource,
)
from finetune_operator.builders.job import stage_job
from finetune_operator.builders.progress import ProgressEndpoint
from finetune_operator.builders.service import gang_service
from finetune_operator.decide.types import Decision, Event, ForceDelete, Key, Observed, StageRun, StartStage, StopStage
from finetune_operator.events import post_events
from finetune_operator.merge_patch import merge_patch
from finetune_operator.store import Entry, Store, Table, adapter_group
from finetune_operator.views import JobView, controller_uid, is_settled, stage_run

logger = logging.getLogger(__name__)

CONTROLLER_UID_LABEL = "batch.kubernetes.io/controller-uid"


class MovedOn(Exception):
    """The world is not what was observed; look again."""


class NameTakenError(Exception):
    """An object with a name of ours exists and is not ours; the message names it."""


def object_body(kind: Adapter | AdapterVersion) -> dict[str, Any]:
    """What is POSTed: without the members of metadata and status that the API server fills."""
    wire = kind.to_wire()
    wire.pop("status", None)
    given = wire["metadata"]
    wire["metadata"] = {name: given[name] for name in ("name", "namespace", "labels", "annotations") if given.get(name)}
    return wire


class ClusterExecutor:
    """Carries decisions out. Every write names its object or carries a precondition; answers go into the store."""

    def __init__(
        self,
        api: Api,
        store: Store,
        instance: str,
        clock: Callable[[], datetime],
        progress: Callable[[], ProgressEndpoint | None] = lambda: None,
    ) -> None:
        """`instance` names this process in Events; `progress` says where pods push theirs, if anywhere."""
        self._api = api
        self._store = store
        self._instance = instance
        self._clock = clock
        self._progress = progress
        self._verified: dict[str, int] = {}

    async def observe(self, key: Key) -> Observed | None:
        """What is known of the job now; None when it does not exist. Reads the API only when the watches disagree."""
        epoch = self._store.epoch
        entry = self._store.finetune_jobs.get(key)
        if entry is None:
            return None
        runs = await self._runs(entry.uid)
        if self._store.epoch != epoch:
            raise MovedOn("the watches have started anew")
        job = entry.value.model
        adapter = self._store.adapters.get(Key(key.namespace, job.spec.output.adapter_ref.name))
        group = adapter_group(key.namespace, job.spec.output.adapter_ref.name)
        start = job.spec.method.warm_start_from
        warm = self._store.versions.get(Key(key.namespace, start.version)) if start is not None else None
        return Observed(
            job=job,
            pools=tuple(self._pools()),
            adapter=adapter.value.model if adapter is not None else None,
            versions=tuple(version.value.model for version in self._store.versions.owned_by(group)),
            warm_start=warm.value.model if warm is not None else None,
            runs={run.job_name: run for run in runs},
            kueue=self._store.kueue,
        )

    def _pools(self) -> Iterator[GPUPool]:
        """Pools that fit the contract: one that does not must not stop the jobs of the others."""
        for entry in self._store.pools:
            try:
                yield entry.value.model
            except ValidationError as error:
                logger.error(
                    "pool does not fit the contract", extra={"pool": entry.key.name, "error": str(error)[:500]}
                )

    async def _runs(self, uid: str) -> list[StageRun]:
        runs = []
        for entry in self._store.jobs.owned_by(uid):
            pods = [pod.value for pod in self._store.pods.owned_by(entry.uid)]
            if not is_settled(entry.value, pods) and self._verified.get(entry.uid) != entry.version:
                pods = await self._fresh_pods(entry)
            runs.append(stage_run(entry.value, pods, self._store.workloads.state_of(entry.uid)))
        return runs

    async def _fresh_pods(self, job: Entry[JobView]) -> list[Any]:
        """The Job has ended but the ends of its pods were not seen: ask once, they may also be gone."""
        selector = f"{CONTROLLER_UID_LABEL}={job.uid}"
        async for page in self._api.pages(PODS, job.key.namespace, selector):
            for body in page.get("items", []):
                self._store.pods.put(body)
        self._verified[job.uid] = job.version
        return [pod.value for pod in self._store.pods.owned_by(job.uid)]

    async def act(self, observed: Observed, decision: Decision) -> None:
        """Write the status, then the children. Raises when the world moved on; the key is then tried again."""
        if observed.job.metadata.deletion_timestamp is not None:
            return
        before = observed.job.status.to_wire() if observed.job.status is not None else {}
        await self.write_status(
            FINETUNE_JOBS, self._store.finetune_jobs, observed.job.metadata, before, decision.status.to_wire()
        )
        try:
            if decision.adapter is not None:
                await self._create_adapter(decision.adapter)
            for stop in decision.stops:
                await self._stop(observed.job.metadata.namespace, stop)
            for lost in decision.force_deletes:
                await self._force_delete(observed.job.metadata.namespace, lost)
            for start in decision.starts:
                await self._start(start)
            if decision.version is not None:
                await self._create_version(decision.version)
        except (ApiError, NameTakenError) as error:
            if isinstance(error, NameTakenError) or error.refused:
                await self._tell_refusal(observed.job.metadata, decision, error)
            raise
        finally:
            await self._tell(observed.job.metadata, decision.status.run, decision.events)

    async def _tell(self, about: ObjectMeta, run: int, events: tuple[Event, ...]) -> None:
        await post_events(self._api, "FineTuneJob", about, events, self._instance, str(run), self._clock())

    async def _tell_refusal(self, about: ObjectMeta, decision: Decision, error: Exception) -> None:
        """Nobody should have to read the operator's log to learn why nothing starts."""
        reason = "NameTaken" if isinstance(error, NameTakenError) else "Refused"
        message = f"the API server refuses what the run needs next: {error}"[:1000]
        current = self._store.finetune_jobs.get(Key(about.namespace, about.name))
        if current is not None and current.uid == about.uid:
            before = current.value.wire.get("status", {})
            after = {**before, "reason": reason, "message": message}
            observed = current.value.model.metadata
            await self.write_status(FINETUNE_JOBS, self._store.finetune_jobs, observed, before, after)
        await self._tell(about, decision.status.run, (Event("Warning", reason, message),))

    async def write_status(
        self, resource: Resource, table: Table[Any], about: ObjectMeta, before: dict[str, Any], after: dict[str, Any]
    ) -> bool:
        """Patch what changed; False when nothing did. Raises MovedOn when the object is not the one observed."""
        patch = merge_patch(before, after)
        if not patch:
            return False
        metadata = {"uid": about.uid, "resourceVersion": about.resource_version}
        key = Key(about.namespace, about.name)
        try:
            written = await self._api.patch_status(
                resource, about.namespace, about.name, {"metadata": metadata, "status": patch}
            )
        except ApiError as error:
            if error.status == 404:
                table.remove(key, about.uid)
                raise MovedOn(f"{resource.plural} {key.namespace}/{key.name} is gone") from error
            if error.status == 409:
                await self._refresh(resource, table, key, about.uid)
                raise MovedOn(f"{resource.plural} {key.namespace}/{key.name} has changed") from error
            raise
        table.put(written)
        return True

    async def _refresh(self, resource: Resource, table: Table[Any], key: Key, uid: str) -> None:
        try:
            table.put(await self._api.get(resource, key.namespace, key.name))
        except ApiError as error:
            if error.status != 404:
                raise
            table.remove(key, uid)

    async def _create_adapter(self, adapter: Adapter) -> None:
        try:
            self._store.adapters.put(await self._api.create(ADAPTERS, object_body(adapter)))
        except ApiError as error:
            if error.status != 409:
                raise
            # Another job was first: its Adapter is the one, never overwritten.
            key = Key(adapter.metadata.namespace, adapter.metadata.name)
            await self._refresh(ADAPTERS, self._store.adapters, key, "")

    async def _start(self, start: StartStage) -> None:
        service = gang_service(start)
        if service is not None:
            await self._create_child(SERVICES, service, start)
        self._store.jobs.put(await self._create_child(JOBS, stage_job(start, self._progress()), start))

    async def _create_child(self, resource: Resource, body: dict[str, Any], start: StartStage) -> dict[str, Any]:
        """POST once; an existing object is adopted only when our job's uid controls it."""
        try:
            return await self._api.create(resource, body)
        except ApiError as error:
            if error.status != 409:
                raise
        namespace = start.task.job.namespace
        existing = await self._api.get(resource, namespace, start.job_name)
        if controller_uid(existing) != start.task.job.uid:
            raise NameTakenError(
                f"{resource.plural} {start.job_name} exists and belongs to somebody else; delete or rename it"
            )
        return existing

    async def _stop(self, namespace: str, stop: StopStage) -> None:
        """Foreground: the Job stays, Terminating, until its pods have used their grace to save a checkpoint."""
        entry = self._store.jobs.get(Key(namespace, stop.job_name))
        try:
            answer = await self._api.delete(JOBS, namespace, stop.job_name, stop.uid, "Foreground")
            if answer.get("kind") == "Job":
                self._store.jobs.put(answer)
        except ApiError as error:
            if error.status not in (404, 409):
                raise
            # Gone already, or of another uid: either way ours does not exist any more.
            self._store.jobs.remove(Key(namespace, stop.job_name), stop.uid)
        if entry is not None and entry.uid == stop.uid and entry.value.nodes > 1:
            await self._remove_service(namespace, stop.job_name, entry.owner)

    async def _force_delete(self, namespace: str, lost: ForceDelete) -> None:
        logger.warning("removing a pod whose node does not answer", extra={"namespace": namespace, "pod": lost.pod})
        try:
            await self._api.delete(PODS, namespace, lost.pod, lost.uid, "Background", grace_s=0)
        except ApiError as error:
            if error.status not in (404, 409):
                raise
        self._store.pods.remove(Key(namespace, lost.pod), lost.uid)

    async def _remove_service(self, namespace: str, name: str, owner: str) -> None:
        try:
            service = await self._api.get(SERVICES, namespace, name)
            if controller_uid(service) == owner:
                await self._api.delete(SERVICES, namespace, name, service["metadata"]["uid"], "Background")
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    async def _create_version(self, version: AdapterVersion) -> None:
        try:
            self._store.versions.put(await self._api.create(ADAPTER_VERSIONS, object_body(version)))
            return
        except ApiError as error:
            if error.status != 409:
                raise
        body = await self._api.get(ADAPTER_VERSIONS, version.metadata.namespace, version.metadata.name)
        existing = AdapterVersion.from_wire(body)
        ours, theirs = version.spec.origin, existing.spec.origin
        if (ours.uid, ours.run) != (theirs.uid, theirs.run):
            raise NameTakenError(
                f"AdapterVersion {version.metadata.name} exists and comes from run {theirs.run} of job {theirs.job}; "
                "a version's number is never reused"
            )
        self._store.versions.put(body)
