"""What the endpoint and the writer need of an API server, in memory: TokenReviews, and statuses with their versions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from finetune_operator.api import Api
from finetune_operator.connection import Connection
from finetune_operator.merge_patch import apply_merge_patch
from tests.cluster.harness.process import LOOPBACK, free_ports


class ApiServer:
    """Answers as the real one does in tests/cluster/test_progress.py, but as fast or as badly as a test wants."""

    def __init__(self) -> None:
        self.tokens: dict[str, tuple[str, str]] = {}
        """Token -> (audience, pod uid)."""
        self.objects: dict[str, dict[str, Any]] = {}
        self.reviews = 0
        self.patches: list[tuple[str, dict[str, Any], str]] = []
        """Name, body, field manager."""
        self.fails_with = 0
        self.hold: asyncio.Event | None = None

    async def review(self, request: web.Request) -> web.Response:
        self.reviews += 1
        if self.hold is not None:
            await self.hold.wait()
        if self.fails_with:
            return web.json_response({"message": "away"}, status=self.fails_with)
        spec = (await request.json())["spec"]
        audience, pod = self.tokens.get(spec["token"], ("", ""))
        if audience not in spec["audiences"]:
            return web.json_response({"status": {"error": "invalid bearer token"}})
        extra = {"authentication.kubernetes.io/pod-uid": [pod]} if pod else {}
        user = {"username": "system:serviceaccount:team-a:default", "extra": extra}
        return web.json_response({"status": {"authenticated": True, "audiences": [audience], "user": user}})

    async def patch(self, request: web.Request) -> web.Response:
        body, name = await request.json(), request.match_info["name"]
        self.patches.append((name, body, request.query.get("fieldManager", "")))
        if self.fails_with:
            return web.json_response({"message": "away"}, status=self.fails_with)
        known = self.objects.get(name)
        if known is None:
            return web.json_response({"message": "not found"}, status=404)
        wanted = {key: known["metadata"][key] for key in ("uid", "resourceVersion")}
        if body["metadata"] != wanted:
            return web.json_response({"message": "conflict"}, status=409)
        known["status"] = apply_merge_patch(known["status"], body["status"])
        known["metadata"]["resourceVersion"] = str(int(wanted["resourceVersion"]) + 1)
        return web.json_response(known)


@contextlib.asynccontextmanager
async def served(server: ApiServer) -> AsyncIterator[Api]:
    """A client of the server."""
    application = web.Application()
    application.router.add_post("/apis/authentication.k8s.io/v1/tokenreviews", server.review)
    path = "/apis/finetune.dev/v1alpha1/namespaces/{namespace}/finetunejobs/{name}/status"
    application.router.add_patch(path, server.patch)
    runner = web.AppRunner(application)
    await runner.setup()
    port = free_ports(1)[0]
    await web.TCPSite(runner, LOOPBACK, port).start()

    def nobody_leads() -> None:
        raise AssertionError("live progress must not need the lease")

    try:
        async with Api(Connection(f"http://{LOOPBACK}:{port}"), guard=nobody_leads) as api:
            yield api
    finally:
        await runner.cleanup()
