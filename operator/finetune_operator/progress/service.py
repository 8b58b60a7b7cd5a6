"""Live progress as a part of the operator: serves once there is a certificate, follows its renewal, writes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from finetune_operator.api import Api
from finetune_operator.builders.progress import ProgressEndpoint
from finetune_operator.health import Health
from finetune_operator.metrics import Metrics
from finetune_operator.progress.certificate import (
    Files,
    UnusableCertificate,
    judge,
    load_pair,
    server_context,
)
from finetune_operator.progress.endpoint import Endpoint, serve
from finetune_operator.progress.inbox import Inbox
from finetune_operator.progress.reviews import Reviews
from finetune_operator.progress.writer import Writer
from finetune_operator.store import Store

logger = logging.getLogger(__name__)

PART = "progress"
LOOK_S = 10.0
"""Between two looks at the certificate's files; the kubelet takes a minute to bring a renewed Secret."""
RENEW_S = 7 * 24 * 3600.0
"""Warned about when it expires within a week."""


@dataclass(frozen=True)
class Settings:
    """What the operator's arguments say. `url` is what pods are given: its host must be in the certificate."""

    url: str
    port: int
    folder: Path
    ca: Path | None = None


class ProgressService:
    """Without a certificate nobody listens and pods are told nothing; that is said once, and all else works."""

    def __init__(
        self,
        settings: Settings,
        api: Api,
        store: Store,
        health: Health,
        metrics: Metrics,
        ready: Callable[[], bool],
        wall: Callable[[], datetime],
        clock: Callable[[], float],
    ) -> None:
        """`wall` is compared with times in objects and certificates; `clock` never steps back."""
        self._settings = settings
        self._files = Files.of(settings.folder, settings.ca)
        self._host = urlsplit(settings.url).hostname or ""
        self._health = health
        self._metrics = metrics
        self._wall = wall
        inbox = Inbox()
        self._endpoint = Endpoint(store, inbox, Reviews(api, clock), metrics, ready, wall, clock)
        self._writer = Writer(api, store, inbox, metrics, wall, clock)
        self._context: ssl.SSLContext | None = None
        self._content: tuple[bytes, bytes, bytes] | None = None
        self._state = ""
        self._offered: ProgressEndpoint | None = None

    def offered(self) -> ProgressEndpoint | None:
        """What new pods are told: where to push. None until a certificate has worked."""
        return self._offered

    async def run(self) -> None:
        """Until cancelled. Raises OSError when the port cannot be listened on."""
        async with contextlib.AsyncExitStack() as stack:
            writing = asyncio.create_task(self._writer.run(), name="progress-writer")
            stack.callback(writing.cancel)
            listening = False
            while not writing.done():
                self.look()
                if self._context is not None and not listening:
                    await stack.enter_async_context(serve(self._endpoint, self._context, self._settings.port))
                    listening = True
                await asyncio.wait([writing], timeout=LOOK_S)
            await writing

    def look(self) -> None:
        """Look at the certificate: take a new one over, and say what is wrong with it, once."""
        try:
            content = self._files.content()
            if content is None:
                if self._offered is not None:
                    raise UnusableCertificate(f"{self._files.certificate} is gone; restore the Secret")
                self._tell("off")
                return
            certificate = judge(self._files, self._host)
            self._use(content)
        except UnusableCertificate as error:
            self._metrics.progress_certificate(0)
            self._tell(str(error), f"live progress: {error}")
            return
        self._offered = ProgressEndpoint(self._settings.url, certificate.ca)
        self._metrics.progress_certificate(certificate.expires_at)
        left_s = certificate.expires_at - self._wall().timestamp()
        if left_s > RENEW_S:
            self._tell("on")
        else:
            told = f"{self._files.certificate} expires in {left_s / 3600:.0f} h; renew the certificate"
            self._tell("expires", f"live progress: {told}")

    def _use(self, content: tuple[bytes, bytes, bytes]) -> None:
        """Serve with it from the next connection on."""
        if self._context is None:
            self._context = server_context(self._files)
        elif content != self._content:
            load_pair(self._context, self._files)
            logger.info("the certificate of live progress was renewed")
        self._content = content

    def _tell(self, state: str, trouble: str = "") -> None:
        """Trouble is one line at /readyz, which takes nobody out of service, and one in the log when it begins."""
        self._health.warn(PART, trouble)
        if state == self._state:
            return
        self._state = state
        if trouble:
            logger.warning(trouble)
        elif state == "on":
            logger.info("live progress is on", extra={"url": self._settings.url, "port": self._settings.port})
        else:
            logger.info("live progress is off: no certificate", extra={"file": str(self._files.certificate)})
