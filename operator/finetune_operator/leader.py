"""Leadership: one Lease, renewed by our own loop. Whoever loses it ends the process, so that nothing lingers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from finetune_operator.api import LEASES, Api, ApiError

logger = logging.getLogger(__name__)

LOST_LEASE_EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: start me again."""


class NotLeading(Exception):
    """This process may not write (any more)."""


@dataclass(frozen=True)
class Timing:
    """A follower waits `lease_s` without a sign of life before it takes over; the rest are client-go's shares of it."""

    lease_s: int = 15

    @property
    def renew_deadline_s(self) -> float:
        """Seconds after the last renewal when the leader stops."""
        return self.lease_s * 2 / 3

    @property
    def retry_s(self) -> float:
        """Seconds between two attempts."""
        return self.lease_s * 2 / 15

    @property
    def request_s(self) -> float:
        """Time-out of one request."""
        return self.lease_s * 4 / 15


def uptime() -> float:
    """Seconds that no clock change moves and that go on while the process is stopped or the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _micro_time() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Leader:
    """The Lease loop. `check` is asked before every write; `lead` returns only when leadership is lost."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        identity: str,
        *,
        timing: Timing | None = None,
        clock: Callable[[], float] = uptime,
    ) -> None:
        """`clock` counts seconds and never steps back."""
        self._api = api
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._timing = timing or Timing()
        self._clock = clock
        self._renewed_at: float | None = None
        self._seen: tuple[Any, ...] = ()
        self._seen_at = clock()

    @property
    def leads(self) -> bool:
        """Whether the last renewal is recent enough that nobody else can have taken over."""
        return self._renewed_at is not None and self._clock() - self._renewed_at < self._timing.renew_deadline_s

    def check(self) -> None:
        """Raises NotLeading unless this process leads at this moment."""
        if not self.leads:
            raise NotLeading("this replica does not hold the lease")

    async def acquire(self) -> None:
        """Wait until this process leads."""
        leads = await self._try("acquire")
        while not leads:
            await asyncio.sleep(self._timing.retry_s)
            leads = await self._try("acquire")
        logger.info("leading", extra={"lease": f"{self._namespace}/{self._name}", "identity": self._identity})

    async def lead(self) -> None:
        """Renew until that fails for so long that somebody else may take over, then return."""
        while self.leads:
            await asyncio.sleep(self._timing.retry_s)
            if self.leads:
                await self._try("renew")
        logger.error("lost the lease", extra={"lease": f"{self._namespace}/{self._name}", "identity": self._identity})

    async def release(self) -> None:
        """Let the next replica start at once."""
        if not self.leads:
            return
        self._renewed_at = None
        try:
            lease = await self._read()
            if lease is not None and lease.get("spec", {}).get("holderIdentity") == self._identity:
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _micro_time()}
                await self._write("PUT", lease)
        except ApiError as error:
            logger.warning("lease not released; it runs out by itself", extra={"error": str(error)})

    async def _try(self, purpose: str) -> bool:
        """One attempt. Whatever goes wrong is a failed attempt: only a written lease counts."""
        asked_at = self._clock()
        try:
            won = await self._claim()
        except Exception as error:  # noqa: BLE001 - every failure to renew is the same failure
            logger.warning("lease not written", extra={"purpose": purpose, "error": f"{type(error).__name__}: {error}"})
            return False
        if won:
            # From before the request: the lease's own time may have started then.
            self._renewed_at = asked_at
        else:
            self._renewed_at = None
        return won

    async def _claim(self) -> bool:
        lease = await self._read()
        now = _micro_time()
        mine = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self._timing.lease_s,
            "renewTime": now,
        }
        if lease is None:
            first = {**mine, "acquireTime": now, "leaseTransitions": 0}
            metadata = {"name": self._name, "namespace": self._namespace}
            body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": first}
            await self._write("POST", body)
            return True
        spec: dict[str, Any] = lease.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        seen = (holder, spec.get("renewTime"), spec.get("leaseTransitions"))
        if seen != self._seen:
            self._seen, self._seen_at = seen, self._clock()
        if holder not in ("", self._identity):
            patience_s = max(self._timing.lease_s, int(spec.get("leaseDurationSeconds") or 0))
            if self._clock() - self._seen_at < patience_s:
                return False
        if holder != self._identity:
            mine |= {"acquireTime": now, "leaseTransitions": int(spec.get("leaseTransitions") or 0) + 1}
        lease["spec"] = spec | mine
        await self._write("PUT", lease)
        return True

    async def _read(self) -> dict[str, Any] | None:
        try:
            return await self._request("GET", LEASES.path(self._namespace, self._name), None)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def _write(self, method: str, lease: dict[str, Any]) -> None:
        """The resourceVersion in the object makes this lose against any other writer."""
        await self._request(method, LEASES.path(self._namespace, self._name if method == "PUT" else None), lease)

    async def _request(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        return await self._api.request(
            method, path, body=body, timeout_s=self._timing.request_s, attempts=1, guarded=False
        )
