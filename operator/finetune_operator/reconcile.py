"""One look at one key: observe, decide, act."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pydantic import ValidationError

from finetune_operator.cluster_executor import ClusterExecutor, MovedOn
from finetune_operator.decide import decide
from finetune_operator.decide.types import Key
from finetune_operator.installation import RECHECK_S, ForeignObject, Installation
from finetune_operator.metrics import Metrics
from finetune_operator.pool import PoolReconciler
from finetune_operator.release import ReleaseReconciler

logger = logging.getLogger(__name__)


@dataclass(frozen=True, order=True)
class Item:
    """What is in the queue."""

    kind: Literal["job", "adapter", "pool"]
    key: Key

    def __str__(self) -> str:
        return f"{self.kind} {self.key.namespace}/{self.key.name}"


class Reconciler:
    """The work of the queue."""

    def __init__(
        self,
        executor: ClusterExecutor,
        releases: ReleaseReconciler,
        pools: PoolReconciler,
        metrics: Metrics,
        clock: Callable[[], datetime],
        installation: Installation,
    ) -> None:
        """`clock` is the wall clock: it is compared with the times of objects."""
        self._executor = executor
        self._releases = releases
        self._pools = pools
        self._metrics = metrics
        self._clock = clock
        self._installation = installation

    async def work(self, item: Item) -> float | None:
        """Look at the key once. Returns the seconds until it must be looked at again, None: when something changes."""
        started = time.perf_counter()
        result = "error"
        try:
            if item.kind == "pool":
                await self._pools.reconcile(item.key)
                after_s = None
            else:
                await self._installation.claim(item.kind, item.key)
                after_s = await (self._job(item.key) if item.kind == "job" else self._releases.reconcile(item.key))
            result = "ok"
        except MovedOn as moved:
            logger.debug("look again", extra={"key": str(item), "why": str(moved)})
            result = "conflict"
            return 0.0
        except ForeignObject:
            result = "foreign"
            return RECHECK_S
        finally:
            self._metrics.reconciled(item.kind, result, time.perf_counter() - started)
        return after_s

    async def _job(self, key: Key) -> float | None:
        try:
            observed = await self._executor.observe(key)
        except ValidationError as error:
            # Stored by another version of the contract: a person must act, and the next change is looked at again.
            logger.error("object does not fit the contract", extra={"key": str(key), "error": str(error)[:1000]})
            return None
        if observed is None:
            self._metrics.forget(key)
            return None
        now = self._clock()
        decision = decide(observed, now)
        before = observed.job.status
        metadata = observed.job.metadata
        if before is None or (before.phase, before.reason) != (decision.status.phase, decision.status.reason):
            logger.info(
                decision.status.message or decision.status.phase,
                extra={
                    "namespace": key.namespace,
                    "job": key.name,
                    "uid": metadata.uid,
                    "run": decision.status.run,
                    "phase": decision.status.phase,
                    "reason": decision.status.reason,
                },
            )
        nodes = observed.job.spec.compute.nodes
        # What is written is counted there and then: the next look no longer sees the difference.
        await self._executor.act(observed, decision, lambda: self._metrics.decided(key, before, decision.status, nodes))
        if decision.wake_at is None:
            return None
        return max(0.1, (decision.wake_at - now).total_seconds())
