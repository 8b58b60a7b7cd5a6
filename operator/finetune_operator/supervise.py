"""Keeps the watches alive: waits for CRDs and rights, starts kopf, starts it again, and says why when it cannot."""

from __future__ import annotations

import asyncio
import logging
import signal

import kopf

from finetune_operator.api import Api, ApiError
from finetune_operator.audit import Audit
from finetune_operator.connection import Connection
from finetune_operator.health import Health
from finetune_operator.metrics import Metrics
from finetune_operator.queue import Workers
from finetune_operator.reconcile import Item
from finetune_operator.settings import configure
from finetune_operator.store import Store
from finetune_operator.watch import Watches

logger = logging.getLogger(__name__)

RECHECK_S = 3.0
AUDIT_S = 60.0
PART = "watches"


class Supervisor:
    """Runs kopf inside this process for as long as the process lives."""

    def __init__(
        self,
        connection: Connection,
        api: Api,
        watches: Watches,
        store: Store,
        workers: Workers[Item],
        health: Health,
        metrics: Metrics,
        namespaces: list[str] | None,
        stop: asyncio.Event,
    ) -> None:
        """`stop` is set by SIGTERM or SIGINT."""
        self._connection = connection
        self._api = api
        self._watches = watches
        self._store = store
        self._workers = workers
        self._health = health
        self._metrics = metrics
        self._namespaces = namespaces
        self._stop = stop
        self._running = False
        self._flag: asyncio.Event | None = None

    async def missing(self) -> str:
        """What must be mended before the watches can work; empty when nothing."""
        for source in self._watches.sources:
            places: list[str | None] = [None]
            if self._namespaces and source.resource.namespaced:
                places = list(self._namespaces)
            for namespace in places:
                try:
                    query = {"limit": "1"}
                    await self._api.request("GET", source.resource.path(namespace), query=query, attempts=1)
                except ApiError as error:
                    name = ".".join(part for part in (source.resource.plural, source.resource.group) if part)
                    if error.status == 404:
                        return f"{name} does not exist; apply the CRDs (crds/*.yaml)"
                    if error.status in (401, 403):
                        return f"{name}: {error.message}; apply the operator's RBAC (manifests/base)"
                    return f"{name}: {error}"
        return ""

    async def run(self) -> None:
        """Until cancelled: wait until the watches can work, run them, and begin again when they end."""
        self._catch_signals()
        while not self._stop.is_set():
            reason = await self.missing()
            if reason:
                self._health.trouble(PART, reason)
                self._health.fine("start")
                logger.warning("not ready", extra={"reason": reason})
                await asyncio.sleep(RECHECK_S)
                continue
            await self._watch()
            if not self._stop.is_set():
                self._metrics.watches_restarted()
                await asyncio.sleep(RECHECK_S)

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)

    async def _watch(self) -> None:
        """One life of kopf. What it knew is forgotten at its end: a half-read world must not be decided on."""
        registry = self._watches.registry(self._connection)
        settings = kopf.OperatorSettings()
        configure(settings)
        ready, self._flag = asyncio.Event(), asyncio.Event()
        try:
            tasks = await kopf.spawn_tasks(
                registry=registry,
                settings=settings,
                namespaces=self._namespaces or (),
                clusterwide=not self._namespaces,
                ready_flag=ready,
                stop_flag=self._flag,
            )
            # kopf has taken the signals; they stop the process, not only the watches.
            self._catch_signals()
            self._health.fine("start")
            self._health.fine(PART)
            self._running = True
            await kopf.run_tasks(tasks)
        except Exception as error:  # noqa: BLE001 - whatever ended the watches, they are started again
            logger.warning("watches ended", extra={"error": f"{type(error).__name__}: {error}"})
            self._health.trouble(PART, f"the watches ended: {type(error).__name__}: {error}")
        finally:
            self._running = False
            self._workers.clear()
            self._store.clear()

    async def audit(self) -> None:
        """Until cancelled: compare the store with lists, and start the watches anew when one is dead."""
        audit = Audit(self._api, self._watches, self._workers.add)
        while True:
            await asyncio.sleep(AUDIT_S)
            if not self._running:
                continue
            try:
                dead = await audit.run(self._namespaces)
            except ApiError as error:
                logger.warning("audit failed", extra={"error": str(error)})
                continue
            if dead and self._flag is not None:
                self._health.trouble(PART, f"no sign of life from the watches of {', '.join(dead)}")
                logger.error("watches are dead and started anew", extra={"resources": ", ".join(dead)})
                self._flag.set()
