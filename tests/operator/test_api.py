"""The client against a real HTTP server of the test's: retries, refusals, the guard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from finetune_operator import api as module
from finetune_operator.api import ADAPTERS, FINETUNE_JOBS, GPU_POOLS, JOBS, Api, ApiError
from finetune_operator.connection import Connection


class Server:
    """Answers with what the test lines up; remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any, dict[str, str]]] = []
        self.asked: list[tuple[str, str, Any]] = []
        self.url = ""

    def will(self, status: int, body: Any = None, **headers: str) -> None:
        self.answers.append((status, body or {}, {k.replace("_", "-"): v for k, v in headers.items()}))

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append((request.method, request.path_qs, await request.json() if request.can_read_body else None))
        status, body, headers = self.answers.pop(0)
        return web.json_response(body, status=status, headers=headers)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", made.handle)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    made.url = f"http://{host}:{port}"
    yield made
    await runner.cleanup()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Delays between tries, which are not waited for."""
    seen: list[float] = []
    pause = asyncio.sleep

    async def sleep(seconds: float) -> None:
        seen.append(seconds)
        await pause(0)

    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    return seen


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_overload_and_server_errors_are_tried_again(server: Server, waits: list[float], status: int) -> None:
    server.will(status)
    server.will(200, {"kind": "Job"})
    async with Api(Connection(server.url)) as api:
        assert await api.get(JOBS, "ns", "a") == {"kind": "Job"}
    assert len(server.asked) == 2
    assert len(waits) == 1


async def test_retry_after_is_honoured(server: Server, waits: list[float]) -> None:
    server.will(429, None, Retry_After="7")
    server.will(200)
    async with Api(Connection(server.url)) as api:
        await api.get(JOBS, "ns", "a")
    assert waits == [7]


async def test_it_gives_up_after_some_tries(server: Server, waits: list[float]) -> None:
    for _ in range(module.ATTEMPTS):
        server.will(503, {"reason": "ServiceUnavailable", "message": "etcd is away"})
    async with Api(Connection(server.url)) as api:
        with pytest.raises(ApiError, match="etcd is away"):
            await api.get(JOBS, "ns", "a")
    assert len(waits) == module.ATTEMPTS - 1


@pytest.mark.parametrize(("status", "refused"), [(400, True), (403, True), (404, False), (409, False), (422, True)])
async def test_a_refusal_is_final_and_says_why(server: Server, status: int, refused: bool) -> None:
    server.will(status, {"reason": "Because", "message": "spec.x is wrong"})
    async with Api(Connection(server.url)) as api:
        with pytest.raises(ApiError, match=r"spec\.x is wrong") as caught:
            await api.create(ADAPTERS, {"metadata": {"name": "a", "namespace": "ns"}})
    assert (caught.value.status, caught.value.reason, caught.value.refused) == (status, "Because", refused)
    assert len(server.asked) == 1


async def test_an_unreachable_server_is_an_error_with_status_0(waits: list[float]) -> None:
    async with Api(Connection("http://127.0.0.1:9")) as api:
        with pytest.raises(ApiError, match="GET") as caught:
            await api.get(JOBS, "ns", "a")
    assert caught.value.status == 0


async def test_every_try_of_a_write_asks_the_guard_and_no_read_does(server: Server, waits: list[float]) -> None:
    asked = 0

    def guard() -> None:
        nonlocal asked
        asked += 1
        if asked == 2:
            raise PermissionError("no longer leading")

    server.will(200)
    server.will(503)
    async with Api(Connection(server.url), guard) as api:
        await api.get(JOBS, "ns", "a")
        assert asked == 0
        with pytest.raises(PermissionError):
            await api.create(JOBS, {"metadata": {"name": "a", "namespace": "ns"}})
    assert len(server.asked) == 2, "nothing was sent after the guard refused"


async def test_lists_are_read_page_by_page(server: Server) -> None:
    server.will(200, {"metadata": {"continue": "next"}, "items": [1]})
    server.will(200, {"metadata": {}, "items": [2]})
    async with Api(Connection(server.url)) as api:
        items = [item async for page in api.pages(JOBS, "ns", "a=b", limit=1) for item in page["items"]]
    assert items == [1, 2]
    assert [path for _, path, _ in server.asked] == [
        "/apis/batch/v1/namespaces/ns/jobs?limit=1&labelSelector=a%3Db",
        "/apis/batch/v1/namespaces/ns/jobs?limit=1&labelSelector=a%3Db&continue=next",
    ]


async def test_a_deletion_names_the_uid(server: Server) -> None:
    server.will(200)
    async with Api(Connection(server.url)) as api:
        await api.delete(JOBS, "ns", "a", "uid-1", "Foreground")
    [(method, path, body)] = server.asked
    assert (method, path) == ("DELETE", "/apis/batch/v1/namespaces/ns/jobs/a")
    assert body["preconditions"] == {"uid": "uid-1"}
    assert body["propagationPolicy"] == "Foreground"


def test_paths() -> None:
    assert FINETUNE_JOBS.path() == "/apis/finetune.dev/v1alpha1/finetunejobs"
    assert FINETUNE_JOBS.path("ns", "a", "status") == "/apis/finetune.dev/v1alpha1/namespaces/ns/finetunejobs/a/status"
    assert GPU_POOLS.path(None, "p") == "/apis/finetune.dev/v1alpha1/gpupools/p"
