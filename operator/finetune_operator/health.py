"""Probes and metrics over HTTP: alive, ready with reasons, and what Prometheus scrapes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from finetune_operator.metrics import Metrics

STARTING = "start"
LOOP_STALL_S = 60.0
"""A loop that has not turned for so long is taken for dead."""
WORK_STALL_S = 900.0
"""A key that has been worked on for so long hangs: every request has a time-out."""


class Health:
    """What is known of this process's health; written by its parts, read by the probes."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` in seconds, never stepping back."""
        self._clock = clock
        self._turned_at = clock()
        self._reasons: dict[str, str] = {STARTING: "the watches have not started yet"}
        self._warnings: dict[str, str] = {}
        self.longest_work_s: Callable[[], float] = lambda: 0.0

    def beat(self) -> None:
        """The event loop turns."""
        self._turned_at = self._clock()

    def trouble(self, part: str, reason: str) -> None:
        """A part is not ready, and why."""
        self._reasons[part] = reason

    def fine(self, part: str) -> None:
        """A part is ready."""
        self._reasons.pop(part, None)

    def warn(self, part: str, text: str) -> None:
        """A part that nobody's work depends on is in trouble: said, but no reason to be taken out of service."""
        if text:
            self._warnings[part] = text
        else:
            self._warnings.pop(part, None)

    @property
    def warnings(self) -> list[str]:
        """What is wrong and hinders no work."""
        return [self._warnings[part] for part in sorted(self._warnings)]

    @property
    def reasons(self) -> list[str]:
        """Why this process is not ready; empty when it is. Not leading is ready: the standby is warm."""
        return [self._reasons[part] for part in sorted(self._reasons)]

    @property
    def dead(self) -> str:
        """Why this process should be restarted; empty when it should not."""
        idle_s = self._clock() - self._turned_at
        if idle_s > LOOP_STALL_S:
            return f"the event loop has not turned for {idle_s:.0f} s"
        work_s = self.longest_work_s()
        return f"one key has been worked on for {work_s:.0f} s" if work_s > WORK_STALL_S else ""


def _application(health: Health, metrics: Metrics) -> web.Application:
    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text=f"{health.dead or 'ok'}\n", status=503 if health.dead else 200)

    async def readyz(_: web.Request) -> web.Response:
        reasons = health.reasons
        lines = [*(reasons or ["ok"]), *(f"warning: {text}" for text in health.warnings)]
        return web.Response(text="\n".join(lines) + "\n", status=503 if reasons else 200)

    async def scrape(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    application = web.Application()
    application.router.add_get("/healthz", healthz)
    application.router.add_get("/readyz", readyz)
    application.router.add_get("/metrics", scrape)
    return application


@contextlib.asynccontextmanager
async def serve(health: Health, metrics: Metrics, ports: set[int]) -> AsyncIterator[None]:
    """Serve on these ports, on all addresses: the kubelet and Prometheus come from outside the pod."""
    runner = web.AppRunner(_application(health, metrics), access_log=None)
    await runner.setup()
    try:
        for port in sorted(ports):
            await web.TCPSite(runner, None, port).start()
        yield
    finally:
        await runner.cleanup()
