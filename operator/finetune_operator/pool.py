"""Reconcile a GPUPool: its status says which nodes it has now."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime

from pydantic import ValidationError

from finetune_api.base import whole_seconds
from finetune_operator.api import GPU_POOLS
from finetune_operator.cluster_executor import ClusterExecutor
from finetune_operator.decide.pools import pool_status
from finetune_operator.decide.types import Key
from finetune_operator.store import Store

logger = logging.getLogger(__name__)


class PoolReconciler:
    """Writes the statuses that `pool_status` decides."""

    def __init__(self, store: Store, executor: ClusterExecutor, clock: Callable[[], datetime]) -> None:
        """Statuses are written through the executor, with its preconditions."""
        self._store = store
        self._executor = executor
        self._clock = clock

    async def reconcile(self, key: Key) -> None:
        """Bring the pool's status up to date. Raises MovedOn when the pool has changed; it is then looked at again."""
        entry = self._store.pools.get(key)
        if entry is None:
            return
        try:
            pool = entry.value.model
        except ValidationError as error:
            logger.error("pool does not fit the contract", extra={"pool": key.name, "error": str(error)[:500]})
            return
        if pool.metadata.deletion_timestamp is not None:
            return
        status = pool_status(pool, (node.value for node in self._store.nodes), whole_seconds(self._clock()))
        before = pool.status.to_wire() if pool.status is not None else {}
        await self._executor.write_status(GPU_POOLS, self._store.pools, pool.metadata, before, status.to_wire())
