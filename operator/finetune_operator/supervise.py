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
from finetune_operator.watch import Life, Watches

logger = logging.getLogger(__name__)

RECHECK_S = 3.0
STARTS_WITHIN_S = 30.0
"""For so long watches may read what there is before they can be called dead."""
ENDS_WITHIN_S = 30.0
"""kopf waits without a limit for its own tasks when it ends (aiotasks.stop): so long is waited for it."""
MOST_STUCK = 3
"""Threads of kopf that never ended; with one more the process ends, and begins anew with none."""
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
        self._running_since: float | None = None
        self._flag: concurrent.futures.Future[None] | None = None
        self._asked = asyncio.Event()
        self._stuck = 0

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

        Raises:
            RuntimeError: kopf did not end when asked, once too often.
        """
        loop = asyncio.get_running_loop()
        life = Life(loop)
        registry = self._watches.registry(self._connection, life)
        ended: asyncio.Future[str] = loop.create_future()
        flag: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._flag = flag
        self._asked.clear()

        def live() -> None:
            reason = _live(registry, self._namespaces, flag)
            with contextlib.suppress(RuntimeError):  # the process has ended meanwhile, and its loop with it
                loop.call_soon_threadsafe(_resolve, ended, reason)

        threading.Thread(target=live, name="kopf", daemon=True).start()
        self._health.fine(STARTING)
        self._health.fine(PART)
        self._running_since = loop.time()
        try:
            reason = await self._end_of(ended)
            logger.warning("watches ended", extra={"error": reason})
            self._health.trouble(PART, f"the watches ended: {reason}")
        finally:
            self._running_since = None
            life.over = True
            _ask_to_end(flag)
            self._workers.clear()
            self._watches.forget()
        if self._stuck > MOST_STUCK:
            raise RuntimeError(f"the watches did not end when asked, for the {self._stuck}th time")

    async def _end_of(self, ended: asyncio.Future[str]) -> str:
        """Why a life of kopf has ended; one that was asked to and does not is left behind."""
        asked = asyncio.create_task(self._asked.wait())
        try:
            either: list[asyncio.Future[Any]] = [ended, asked]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
        done, _ = await asyncio.wait([ended], timeout=ENDS_WITHIN_S)
        if done:
            return ended.result()
        self._stuck += 1
        return f"asked to end, and did not within {ENDS_WITHIN_S:.0f} s"

    def _ask_to_end(self) -> None:
        if self._flag is not None:
            _ask_to_end(self._flag)
            self._asked.set()

    async def audit(self) -> None:
        """Until cancelled: compare the store with lists, and start the watches anew when one is dead."""
        audit = Audit(self._api, self._watches, self._workers.add)
        while True:
            await asyncio.sleep(self._audit_s)
            if self._running_since is None or self._asked.is_set():
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
                if version != self._watches.kueue_version:
                    logger.warning("Kueue came, went or changed: watches start anew", extra={"version": version})
                    self._ask_to_end()
                    continue
                dead = await audit.run(self._namespaces)
            except ApiError as error:
                logger.warning("audit failed", extra={"error": str(error)})
                continue
            if dead and not self._starts():
                self._health.trouble(PART, f"no sign of life from the watches of {', '.join(dead)}")
                logger.error("watches are dead and started anew", extra={"resources": ", ".join(dead)})
                self._ask_to_end()

    def _starts(self) -> bool:
        """Whether the watches may still be reading what there is."""
        since = self._running_since
        early = since is None or asyncio.get_running_loop().time() - since < STARTS_WITHIN_S
        return early and not self._watches.complete
