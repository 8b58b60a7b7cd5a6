"""Reconcile an Adapter: the states of its versions and what its channels serve."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from finetune_operator.api import ADAPTER_VERSIONS, ADAPTERS, Api
from finetune_operator.cluster_executor import ClusterExecutor
from finetune_operator.decide.release import decide_release
from finetune_operator.decide.types import Event, Key
from finetune_operator.events import post_events
from finetune_operator.metrics import Metrics
from finetune_operator.store import Store, adapter_group


class ReleaseReconciler:
    """Writes the statuses that `decide_release` decides."""

    def __init__(
        self,
        api: Api,
        store: Store,
        executor: ClusterExecutor,
        metrics: Metrics,
        instance: str,
        clock: Callable[[], datetime],
    ) -> None:
        """Statuses are written through the executor, with its preconditions."""
        self._api = api
        self._store = store
        self._executor = executor
        self._metrics = metrics
        self._instance = instance
        self._clock = clock

    async def reconcile(self, key: Key) -> float | None:
        """Bring the statuses of the Adapter and its versions up to date."""
        entry = self._store.adapters.get(key)
        if entry is None or entry.value.model.metadata.deletion_timestamp is not None:
            self._metrics.versions(key, ())
            return None
        adapter = entry.value.model
        group = adapter_group(key.namespace, key.name)
        versions = [version.value.model for version in self._store.versions.owned_by(group)]
        status, statuses = decide_release(adapter, versions, self._clock())
        for version in versions:
            wanted = statuses[version.metadata.name]
            before = version.status.to_wire() if version.status is not None else {}
            changed = await self._executor.write_status(
                ADAPTER_VERSIONS, self._store.versions, version.metadata, before, wanted.to_wire()
            )
            if changed and (version.status is None or version.status.phase != wanted.phase):
                good = wanted.phase in ("Approved", "PendingApproval")
                event = Event("Normal" if good else "Warning", wanted.phase, wanted.message)
                await post_events(
                    self._api, "AdapterVersion", version.metadata, (event,), self._instance, "", self._clock()
                )
        self._metrics.versions(key, (statuses[version.metadata.name].phase for version in versions))
        before = adapter.status.to_wire() if adapter.status is not None else {}
        if await self._executor.write_status(
            ADAPTERS, self._store.adapters, adapter.metadata, before, status.to_wire()
        ):
            old = {channel.name: channel.version for channel in (adapter.status.channels if adapter.status else [])}
            moved = tuple(
                Event("Normal", "ChannelMoved", f"{channel.name} serves {channel.version} ({channel.digest})")
                for channel in status.channels
                if channel.version and channel.version != old.get(channel.name)
            )
            await post_events(
                self._api, "Adapter", adapter.metadata, moved, self._instance, str(status.versions), self._clock()
            )
        return None
