"""The HTTPS endpoint: every refusal is one line, nothing of a token is logged, and strangers cost little."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import ssl
from collections.abc import AsyncIterator, Callable
from datetime import datetime

from aiohttp import web
from pydantic import ValidationError

from finetune_api.base import whole_seconds
from finetune_api.job.status import FineTuneJobStatus
from finetune_operator.builders.progress import audience, push_path
from finetune_operator.decide.live import fits
from finetune_operator.decide.types import Key
from finetune_operator.metrics import Metrics
from finetune_operator.progress.inbox import Inbox, News
from finetune_operator.progress.limits import Buckets, Rate
from finetune_operator.progress.parse import parse_progress
from finetune_operator.progress.refusal import Refused
from finetune_operator.progress.reviews import Reviews, digest
from finetune_operator.progress.sender import check_sender
from finetune_operator.store import Store

logger = logging.getLogger(__name__)

BODY_LIMIT_BYTES = 4096
BODY_TIMEOUT_S = 5.0
HANDSHAKE_TIMEOUT_S = 5.0
IDLE_S = 30.0
CONNECTIONS = 512
"""At once; more are closed unheard, so that files for the API server remain."""
IN_FLIGHT = 64
"""Requests at once; each may wait for the API server."""
PUSHES = Rate(per_s=0.5, burst=5)
"""Of one pod. The runner pushes every 10 s."""
REMEMBERED_SENDERS = 8192


class Endpoint:
    """Judges pushes, cheapest check first, and puts what is good into the inbox."""

    def __init__(
        self,
        store: Store,
        inbox: Inbox,
        reviews: Reviews,
        metrics: Metrics,
        ready: Callable[[], bool],
        wall: Callable[[], datetime],
        clock: Callable[[], float],
    ) -> None:
        """`ready`: whether the store holds all there is. `wall` stamps news; `clock` never steps back."""
        self._store = store
        self._inbox = inbox
        self._reviews = reviews
        self._metrics = metrics
        self._ready = ready
        self._wall = wall
        self._clock = clock
        self._senders = Buckets(PUSHES, REMEMBERED_SENDERS)
        self._in_flight = 0

    async def push(self, request: web.Request) -> web.Response:
        """Answer one push."""
        self._in_flight += 1
        try:
            if self._in_flight > IN_FLIGHT:
                raise Refused(503, "busy", "too many requests at once; try again", 2.0)
            await self._judge(request)
        except Refused as refused:
            self._metrics.progress_push(refused.reason)
            logger.debug("push refused", extra={"path": request.path, "reason": refused.reason})
            headers = {}
            if refused.retry_after_s is not None:
                headers["Retry-After"] = str(max(1, math.ceil(refused.retry_after_s)))
            return web.Response(status=refused.status, text=f"{refused.message}\n", headers=headers)
        finally:
            self._in_flight -= 1
        self._metrics.progress_push("accepted")
        return web.Response(status=202, text="accepted\n")

    async def _judge(self, request: web.Request) -> None:
        key = Key(request.match_info["namespace"], request.match_info["job"])
        body = await _body(request)
        token = _bearer(request)
        # By the token, not by the job alone: a stranger's pushes must not use up the allowance of the job's own pod.
        wait_s = self._senders.take(digest(token, str(key)), self._clock())
        if wait_s:
            raise Refused(429, "rate", "too many pushes; one every 10 s is plenty", wait_s)
        if not self._ready():
            raise Refused(503, "starting", "this replica has not read the cluster yet; try again", 5.0)
        entry = self._store.finetune_jobs.get(key)
        if entry is None:
            raise Refused(
                404, "unknown-job", f"there is no FineTuneJob {key.namespace}/{key.name} (or not known here yet)"
            )
        reviewed = await self._reviews.review(token, audience(entry.uid))
        if not reviewed.authentic:
            raise Refused(401, "unauthenticated", reviewed.reason)
        try:
            status = entry.value.model.status or FineTuneJobStatus()
        except ValidationError as error:
            raise Refused(
                503, "unreadable-job", "the job's status does not fit this operator's contract", 60.0
            ) from error
        check_sender(self._store, entry.uid, status, reviewed.pod_uid)
        progress = parse_progress(body)
        if not fits(status, progress):
            newest = status.stages[-1]
            raise Refused(
                409, "wrong-attempt", f"stage and attempt must be {newest.name} {newest.attempt}, which runs now"
            )
        # Our clock, not the pod's: the newest counts, and silence is measured with it.
        heard = progress.model_copy(update={"updated_at": whole_seconds(self._wall())})
        self._inbox.offer(key, News(entry.uid, status.stages[-1].job_name, heard))


def _bearer(request: web.Request) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Refused(401, "unauthenticated", "send the pod's projected token as Authorization: Bearer")
    return token.strip()


async def _body(request: web.Request) -> bytes:
    """At most `BODY_LIMIT_BYTES`, in time. Raises Refused."""
    told = f"the body is larger than {BODY_LIMIT_BYTES} bytes"
    if (request.content_length or 0) > BODY_LIMIT_BYTES:
        raise Refused(413, "too-large", told)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > BODY_LIMIT_BYTES:
                    raise Refused(413, "too-large", told)
    except TimeoutError as error:
        raise Refused(408, "too-slow", f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from error
    return bytes(body)


class _Unheard(asyncio.Protocol):
    """A connection too many: closed at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close it."""
        transport.close()


@contextlib.asynccontextmanager
async def serve(endpoint: Endpoint, context: ssl.SSLContext, port: int) -> AsyncIterator[None]:
    """Listen on all addresses: pods come from everywhere. Raises OSError when the port is taken."""
    application = web.Application()
    application.router.add_post(push_path("{namespace}", "{job}"), endpoint.push)
    runner = web.AppRunner(application, access_log=None, keepalive_timeout=IDLE_S)
    await runner.setup()
    handler = runner.server
    if handler is None:
        raise RuntimeError("the server is not set up")
    try:
        server = await asyncio.get_running_loop().create_server(
            lambda: handler() if len(handler.connections) < CONNECTIONS else _Unheard(),
            None,
            port,
            ssl=context,
            ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
        )
        try:
            yield
        finally:
            server.close()
    finally:
        await runner.cleanup()
