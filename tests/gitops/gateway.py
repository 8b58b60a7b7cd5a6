"""A gateway in front of the API server that changes one answer: what a cluster of another version would say."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

from finetune_operator.connection import from_kubeconfig
from tests.cluster.harness.process import LOOPBACK, free_ports

START_DEADLINE_S = 30
Edit = Callable[[dict[str, Any]], dict[str, Any]]


class Gateway:
    """Forwards everything, watches too, with the credentials of a kubeconfig; ``edits`` (path -> change) may change."""

    def __init__(self, kubeconfig: Path, edits: dict[str, Edit]) -> None:
        self._connection = from_kubeconfig(kubeconfig)
        self.edits = edits
        [self.port] = free_ports(1)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)

    def __enter__(self) -> Self:
        """Start to listen."""
        self._thread.start()
        assert self._ready.wait(START_DEADLINE_S), "the gateway did not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; open watches break."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(START_DEADLINE_S)

    def kubeconfig(self, path: Path) -> Path:
        """A kubeconfig that goes through here; who it is was decided by the gateway's own."""
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "gateway", "cluster": {"server": f"http://{LOOPBACK}:{self.port}"}}],
            "contexts": [{"name": "gateway", "context": {"cluster": "gateway"}}],
            "current-context": "gateway",
        }
        path.write_text(yaml.safe_dump(content))
        return path

    async def _serve(self) -> None:
        context: ssl.SSLContext = self._connection.ssl_context()
        async with ClientSession(
            connector=TCPConnector(ssl=context), timeout=ClientTimeout(total=None), auto_decompress=False
        ) as session:
            application = web.Application(client_max_size=2**24)
            application.router.add_route("*", "/{path:.*}", lambda request: self._forward(session, request))
            runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, LOOPBACK, self.port).start()
            self._ready.set()
            await self._stop.wait()
            await runner.cleanup()

    async def _forward(self, session: ClientSession, request: web.Request) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name in ("Accept", "Content-Type")}
        url = self._connection.server + request.path_qs
        async with session.request(request.method, url, headers=headers, data=await request.read() or None) as answer:
            edit = self.edits.get(request.path)
            if edit is not None and answer.status == 200:
                return web.json_response(edit(json.loads(await answer.read())))
            response = web.StreamResponse(
                status=answer.status, headers={"Content-Type": answer.headers.get("Content-Type", "application/json")}
            )
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            return response
