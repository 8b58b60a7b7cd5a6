"""Live progress to the operator over HTTPS: in the background, the newest only, never a reason to fail or to wait."""

from __future__ import annotations

import http.client
import json
import logging
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from finetune_api.stages import Progress

if TYPE_CHECKING:
    from finetune_runner.context import Environment

log = logging.getLogger(__name__)

EVERY_S = 10.0
TIMEOUT_S = 5.0
"""Of each step of a push: to connect, to shake hands, to be answered."""
FIRST_BACKOFF_S = 10.0
LARGEST_BACKOFF_S = 300.0
FLUSH_S = 5.0
"""What the end of a stage waits for its last push, at the most."""
REFUSALS = 3
"""In a row, before the pushes end: the first may come from a replica that has not seen this pod yet."""
REFUSED = frozenset({400, 401, 403, 409, 413})
TOKEN_FILE = "token"  # noqa: S105 - a file name
CA_FILE = "ca.crt"


@dataclass(frozen=True)
class Answer:
    """What became of one push. Status 0: nobody answered."""

    status: int
    told: str
    retry_after_s: float = 0.0


def send(url: str, credentials: Path, body: bytes) -> Answer:
    """One push on a connection of its own, which the next replica may take; token and authority are read anew.

    Without a proxy: the endpoint is in the cluster.
    """
    parts = urlsplit(url)
    try:
        token = (credentials / TOKEN_FILE).read_text(encoding="ascii").strip()
        if not token or token.split() != [token]:
            # Said here: the error of http.client would show the header.
            return Answer(0, f"{credentials / TOKEN_FILE} does not hold a token")
        context = ssl.create_default_context(cafile=str(credentials / CA_FILE))
        connection = http.client.HTTPSConnection(
            parts.hostname or "", parts.port or 443, timeout=TIMEOUT_S, context=context
        )
        try:
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            connection.request("POST", parts.path, body, headers)
            response = connection.getresponse()
            told = response.read(500).decode("utf-8", "replace").strip()
            retry_after = response.getheader("Retry-After") or ""
            return Answer(response.status, told, float(retry_after) if retry_after.isdigit() else 0.0)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Answer(0, f"{type(error).__name__}: {error}")


class ProgressPush:
    """A queue of one and a thread. Calling it returns at once, whatever the network does."""

    def __init__(
        self,
        send: Callable[[bytes], Answer],
        *,
        every_s: float = EVERY_S,
        first_backoff_s: float = FIRST_BACKOFF_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`every_s`: seconds between two pushes, at the least; the first is sent at once."""
        self._send = send
        self._every_s = every_s
        self._first_backoff_s = first_backoff_s
        self._clock = clock
        self._changed = threading.Condition()
        self._newest: Progress | None = None
        self._closing = False
        self._ended = False
        self._troubled = False
        self._thread: threading.Thread | None = None

    def __call__(self, progress: Progress) -> None:
        """The newest progress; one that waits is forgotten."""
        with self._changed:
            if self._ended or self._closing:
                return
            self._newest = progress
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="progress-push", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def close(self, flush_s: float = FLUSH_S) -> None:
        """Send what waits, unless the endpoint does not work, and end. Waits `flush_s` seconds at the most."""
        with self._changed:
            self._closing = True
            thread, hopeless = self._thread, self._troubled
            self._changed.notify_all()
        if thread is not None and not hopeless:
            thread.join(flush_s)

    def _run(self) -> None:
        backoff_s, refusals = 0.0, 0
        while (progress := self._next()) is not None:
            answer = self._send(json.dumps(progress.to_wire(), separators=(",", ":")).encode())
            refusals = refusals + 1 if answer.status in REFUSED else 0
            if 200 <= answer.status < 300:
                self._note_success()
                backoff_s = 0.0
            elif refusals >= REFUSALS:
                log.warning("progress is no longer pushed: %d %s", answer.status, answer.told)
                with self._changed:
                    self._ended = True
                return
            else:
                self._note_trouble(answer)
                backoff_s = min(LARGEST_BACKOFF_S, backoff_s * 2 or self._first_backoff_s)
            self._pause(max(self._every_s, backoff_s, min(answer.retry_after_s, LARGEST_BACKOFF_S)))

    def _next(self) -> Progress | None:
        """The progress to push now; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None or self._closing)
            progress, self._newest = self._newest, None
            return None if self._closing and self._troubled else progress

    def _pause(self, seconds: float) -> None:
        """Until the next push is due, or the stage ends."""
        until = self._clock() + seconds
        with self._changed:
            self._changed.wait_for(lambda: self._closing, until - self._clock())

    def _note_success(self) -> None:
        if self._troubled:
            log.info("progress is pushed again")
        with self._changed:
            self._troubled = False

    def _note_trouble(self, answer: Answer) -> None:
        if not self._troubled:
            log.warning("progress not pushed, tried again later: %d %s", answer.status, answer.told)
        with self._changed:
            self._troubled = True


def progress_push(environment: Environment) -> ProgressPush | None:
    """The push that the pod is configured for; None where nobody listens."""
    url, credentials = environment.progress_url, environment.progress_credentials
    if not url:
        return None
    return ProgressPush(lambda body: send(url, credentials, body))
