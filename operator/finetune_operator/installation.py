"""Two installations in one cluster: whose objects are whose is read from who wrote their status last.

Every write carries the installation's name as field manager, so the mark costs no field, no annotation and no right.
A mark of another installation counts while that one lives, which its Lease tells; objects of a dead one are taken over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from finetune_operator.api import LEASES, Api, ApiError
from finetune_operator.decide.types import Key
from finetune_operator.health import Health
from finetune_operator.leader import uptime
from finetune_operator.store import Store, adapter_group

logger = logging.getLogger(__name__)

PART = "installation"
RECHECK_S = 5.0
"""Seconds between two looks at an object of another installation, and at that one's Lease."""

ItemKind = Literal["job", "adapter"]


class ForeignObject(Exception):
    """Another installation works on it; nothing of it may be touched."""


@dataclass(frozen=True)
class _Other:
    """What is known of another installation."""

    renewed: object
    """renewTime of its Lease: compared, never read, as its clock is not ours."""
    since: float
    asked_at: float
    lives: bool


class Installation:
    """This installation among others."""

    def __init__(
        self,
        api: Api,
        store: Store,
        namespace: str,
        lease: str,
        health: Health,
        *,
        clock: Callable[[], float] = uptime,
    ) -> None:
        """`namespace` and `lease` name our Lease; `clock` counts seconds and never steps back."""
        self._api = api
        self._store = store
        self._namespace = namespace
        self._lease = lease
        self._health = health
        self._clock = clock
        self._others: dict[str, _Other] = {}
        self._foreign: dict[tuple[ItemKind, Key], str] = {}

    async def claim(self, kind: ItemKind, key: Key) -> None:
        """Raises ForeignObject when another living installation works on the object, and tells so in readiness."""
        for name, writer in self._marks(kind, key):
            if writer in ("", self._namespace) or not await self._lives(writer):
                continue
            told = f"{name} is worked on by another installation (namespace {writer}); remove one of the two"
            self._tell((kind, key), told)
            raise ForeignObject(told)
        self._tell((kind, key), "")

    def _marks(self, kind: ItemKind, key: Key) -> Iterator[tuple[str, str]]:
        """Every object that work on the key may write, with the namespace of who wrote it last."""
        if kind == "job":
            job = self._store.finetune_jobs.get(key)
            yield f"FineTuneJob {key.namespace}/{key.name}", job.value.written_by if job is not None else ""
            return
        adapter = self._store.adapters.get(key)
        yield f"Adapter {key.namespace}/{key.name}", adapter.value.written_by if adapter is not None else ""
        for version in self._store.versions.owned_by(adapter_group(key.namespace, key.name)):
            yield f"AdapterVersion {key.namespace}/{version.key.name}", version.value.written_by

    def _tell(self, item: tuple[ItemKind, Key], reason: str) -> None:
        if reason and self._foreign.get(item) != reason:
            logger.error("not touched", extra={"reason": reason})
        if reason:
            self._foreign[item] = reason
        else:
            self._foreign.pop(item, None)
        if not self._foreign:
            self._health.fine(PART)
            return
        others = len(self._foreign) - 1
        more = f" (and {others} more)" if others else ""
        self._health.trouble(PART, min(self._foreign.values()) + more)

    async def _lives(self, namespace: str) -> bool:
        now = self._clock()
        known = self._others.get(namespace)
        if known is None or now - known.asked_at >= RECHECK_S:
            known = await self._look(namespace, known, now)
            self._others[namespace] = known
        return known.lives

    async def _look(self, namespace: str, known: _Other | None, now: float) -> _Other:
        """A Lease that is let go, or that nobody renews for as long as it lasts, belongs to a dead installation."""
        try:
            spec: dict[str, Any] = (await self._api.get(LEASES, namespace, self._lease)).get("spec") or {}
        except ApiError as error:
            if error.status == 404:
                return _Other(None, now, now, lives=False)
            if error.status in (401, 403):
                # It cannot be told apart from a living one; touching nothing is the harmless mistake.
                return _Other(None, now, now, lives=True)
            raise
        renewed = spec.get("renewTime")
        since = known.since if known is not None and known.renewed == renewed else now
        lasts_s = float(spec.get("leaseDurationSeconds") or 0)
        lives = bool(spec.get("holderIdentity")) and now - since <= lasts_s
        if not lives:
            logger.warning("taking over from an installation that is gone", extra={"lease_namespace": namespace})
        return _Other(renewed, since, now, lives)
