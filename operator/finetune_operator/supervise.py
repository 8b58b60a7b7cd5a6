"""Keeps the watches alive: waits for CRDs and rights, starts kopf, starts it again, and says why when it cannot."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
from typing import Any, cast

import kopf

from finetune_operator.api import KUEUE_GROUP, Api, ApiError
from finetune_operator.audit import Audit
from finetune_operator.compatibility import incompatibility
from finetune_operator.connection import Connection
from finetune_operator.health import STARTING, Health
from finetune_operator.metrics import Metrics
from finetune_operator.queue import Workers
from finetune_operator.reconcile import Item
from finetune_operator.settings import configure
from finetune_operator.watch import Watches

logger = logging.getLogger(__name__)

RECHECK_S = 3.0
AUDIT = "audit"
PART = "watches"


def _live(registry: kopf.OperatorRegistry, namespaces: list[str] | None, flag: concurrent.futures.Future[None]) -> str:
    """Run kopf until it ends; why it did."""
    settings = kopf.OperatorSettings()
    configure(settings)
    try:
        asyncio.run(
            kopf.operator(
                registry=registry,
                settings=settings,
                namespaces=namespaces or (),
                clusterwide=not namespaces,
                # A str of a type that kopf does not export. Left out, kopf asks the system for the user's name, and the
                # user of a container has none.
                identity=cast("Any", "finetune-operator"),
                stop_flag=flag,
            )
        )
    except Exception as error:  # noqa: BLE001 - whatever ended the watches, they are started again
        return f"{type(error).__name__}: {error}"
    return "asked to end"


def _resolve(future: asyncio.Future[str], value: str) -> None:
    if not future.done():
        future.set_result(value)


def _ask_to_end(flag: concurrent.futures.Future[None]) -> None:
    with contextlib.suppress(concurrent.futures.InvalidStateError):
        flag.set_result(None)


class Supervisor:
    """Runs kopf inside this process for as long as the process lives."""

    def __init__(
        self,
        connection: Connection,
        api: Api,
        watches: Watches,
        workers: Workers[Item],
        health: Health,
        metrics: Metrics,
        namespaces: list[str] | None,
        audit_s: float,
    ) -> None:
        """`namespaces`: None for the whole cluster. `audit_s`: seconds between two audits."""
        self._connection = connection
        self._api = api
        self._watches = watches
        self._workers = workers
        self._health = health
        self._metrics = metrics
        self._namespaces = namespaces
        self._audit_s = audit_s
        self._running = False
        self._flag: concurrent.futures.Future[None] | None = None

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
        return await incompatibility(self._api)

    async def _look_for_kueue(self) -> str:
        """Learn whether the cluster has Kueue; why that could not be learnt, empty when it could."""
        try:
            self._watches.use_kueue(await self._kueue_version())
        except ApiError as error:
            return f"{KUEUE_GROUP}: {error}"
        return ""

    async def _kueue_version(self) -> str:
        return await self._api.served_version(KUEUE_GROUP, "workloads")

    async def run(self) -> None:
        """Until cancelled: wait until the watches can work, run them, and begin again when they end."""
        while True:
            reason = await self._look_for_kueue() or await self.missing()
            if reason:
                self._health.trouble(PART, reason)
                self._health.fine(STARTING)
                logger.warning("not ready", extra={"reason": reason})
                await asyncio.sleep(RECHECK_S)
                continue
            await self._watch()
            self._metrics.watches_restarted()
            await asyncio.sleep(RECHECK_S)

    async def _watch(self) -> None:
        """One life of kopf, in a thread and a loop of its own: at its end it cancels every task of the loop it ran in.

        What it knew is forgotten then: a half-read world must not be decided on.
        """
        loop = asyncio.get_running_loop()
        registry = self._watches.registry(self._connection, loop)
        ended: asyncio.Future[str] = loop.create_future()
        flag: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._flag = flag

        def live() -> None:
            reason = _live(registry, self._namespaces, flag)
            with contextlib.suppress(RuntimeError):  # the process has ended meanwhile, and its loop with it
                loop.call_soon_threadsafe(_resolve, ended, reason)

        threading.Thread(target=live, name="kopf", daemon=True).start()
        self._health.fine(STARTING)
        self._health.fine(PART)
        self._running = True
        try:
            reason = await ended
            logger.warning("watches ended", extra={"error": reason})
            self._health.trouble(PART, f"the watches ended: {reason}")
        finally:
            self._running = False
            _ask_to_end(flag)
            self._workers.clear()
            self._watches.forget()

    async def audit(self) -> None:
        """Until cancelled: compare the store with lists, and start the watches anew when one is dead."""
        audit = Audit(self._api, self._watches, self._workers.add)
        while True:
            await asyncio.sleep(self._audit_s)
            if not self._running:
                continue
            reason = await self.missing()
            if reason:
                # kopf tries again for ever and says nothing: without this a dead watch would look alive.
                self._health.trouble(AUDIT, reason)
                logger.warning("not ready", extra={"reason": reason})
                continue
            self._health.fine(AUDIT)
            try:
                version = await self._kueue_version()
                if version != self._watches.kueue_version and self._flag is not None:
                    logger.warning("Kueue came, went or changed: watches start anew", extra={"version": version})
                    _ask_to_end(self._flag)
                    continue
                dead = await audit.run(self._namespaces)
            except ApiError as error:
                logger.warning("audit failed", extra={"error": str(error)})
                continue
            if dead and self._flag is not None:
                self._health.trouble(PART, f"no sign of life from the watches of {', '.join(dead)}")
                logger.error("watches are dead and started anew", extra={"resources": ", ".join(dead)})
                _ask_to_end(self._flag)
