"""The endpoint over real TLS: what it takes, what it refuses and how strangers are kept cheap."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from finetune_api.stages import Progress
from finetune_operator.builders.progress import audience, push_path
from finetune_operator.decide.types import Key
from finetune_operator.metrics import Metrics
from finetune_operator.progress.certificate import Files, server_context
from finetune_operator.progress.endpoint import BODY_LIMIT_BYTES, IN_FLIGHT, PUSHES, Endpoint, serve
from finetune_operator.progress.inbox import Inbox, News
from finetune_operator.progress.reviews import REMEMBERED_REFUSAL_S, REMEMBERED_S, REVIEWS, Reviews
from finetune_operator.store import Store
from tests.cluster.harness.process import free_ports
from tests.cluster.harness.progress import HOST, ProgressCertificate
from tests.decide.world import START
from tests.operator.progress.api_server import ApiServer, served
from tests.operator.progress.jobs import add_job, progress

TOKEN = "token-of-a"
SAID = progress(42.0).to_wire()


class Desk:
    """An endpoint that listens, with one job that trains, and its clock."""

    def __init__(self, server: ApiServer, session: aiohttp.ClientSession, port: int) -> None:
        self.server = server
        self.session = session
        self.url = f"https://{HOST}:{port}"
        self.store, self.inbox, self.metrics = Store(), Inbox(), Metrics()
        self.now_s = 0.0
        self.complete = True
        add_job(self.store, "a")
        server.tokens[TOKEN] = (audience("uid-a"), "pod-a")

    async def push(
        self,
        body: Any = SAID,
        *,
        job: str = "a",
        token: str | None = TOKEN,
        method: str = "POST",
        path: str | None = None,
    ) -> tuple[int, str, str | None]:
        """Status, text and Retry-After."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        where = self.url + (path or push_path("team-a", job))
        async with self.session.request(method, where, data=content, headers=headers) as answer:
            return answer.status, await answer.text(), answer.headers.get("Retry-After")

    def counted(self, result: str) -> float:
        return self.metrics.registry.get_sample_value("finetune_progress_pushes_total", {"result": result}) or 0.0


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    certificate = ProgressCertificate(tmp_path / "tls")
    certificate.issue()
    server, port = ApiServer(), free_ports(1)[0]
    trust = ssl.create_default_context(cafile=str(certificate.folder / "ca.crt"))
    async with (
        served(server) as api,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust, limit=0)) as session,
    ):
        made = Desk(server, session, port)
        reviews = Reviews(api, lambda: made.now_s)
        endpoint = Endpoint(
            made.store,
            made.inbox,
            reviews,
            made.metrics,
            lambda: made.complete,
            lambda: START,
            lambda: made.now_s,
        )
        async with serve(endpoint, server_context(Files.of(certificate.folder, None)), port):
            yield made


async def test_accepted_and_stamped_with_our_clock(desk: Desk) -> None:
    future = SAID | {"updatedAt": "2099-01-01T00:00:00Z"}
    assert await desk.push(future) == (202, "accepted\n", None)
    [(key, news)] = list(desk.inbox)
    assert (key, news) == (Key("team-a", "a"), News("uid-a", "a-train-1", progress(42.0, updated_at=START)))
    assert desk.counted("accepted") == 1


REFUSED: list[tuple[str, dict[str, Any], int, str]] = [
    ("too large", {"body": b" " * (BODY_LIMIT_BYTES + 1)}, 413, "larger than 4096 bytes"),
    ("no token", {"token": None}, 401, "send the pod's projected token"),
    ("a wrong token", {"token": "made-up"}, 401, "not valid for audience finetune.dev/job/uid-a"),
    ("another job's token", {"token": "token-of-b"}, 401, "not valid for audience finetune.dev/job/uid-a"),
    ("a token without a pod", {"token": "token-of-nobody"}, 403, "not bound to a pod"),
    ("a stranger's pod", {"token": "token-of-stranger"}, 403, "does not belong to this job"),
    ("no such job", {"job": "none"}, 404, "there is no FineTuneJob team-a/none"),
    ("garbage", {"body": b"garbage"}, 400, "not JSON"),
    ("a bad field", {"body": SAID | {"percent": 200}}, 400, "percent: Input should be less than or equal to 100"),
    ("another attempt", {"body": SAID | {"attempt": 2}}, 409, "must be train 1"),
    ("another stage", {"body": SAID | {"stage": "publish"}}, 409, "must be train 1"),
]


@pytest.mark.parametrize(("what", "push", "code", "told"), REFUSED, ids=[case[0] for case in REFUSED])
async def test_refused_in_one_line(desk: Desk, what: str, push: dict[str, Any], code: int, told: str) -> None:
    add_job(desk.store, "b")
    desk.server.tokens |= {
        "token-of-b": (audience("uid-b"), "pod-b"),
        "token-of-nobody": (audience("uid-a"), ""),
        "token-of-stranger": (audience("uid-a"), "pod-x"),
    }
    status, text, _ = await desk.push(**push)
    assert (status, text.count("\n")) == (code, 1), what
    assert told in text
    assert len(desk.inbox) == 0
    assert desk.counted("accepted") == 0


@pytest.mark.parametrize(
    ("method", "path", "code"), [("GET", None, 405), ("POST", "/v1/progress/team-a", 404), ("POST", "/metrics", 404)]
)
async def test_nothing_else_is_served(desk: Desk, method: str, path: str | None, code: int) -> None:
    assert (await desk.push(method=method, path=path))[0] == code


async def test_a_body_of_unknown_length_is_limited_too(desk: Desk) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 1024

    async with desk.session.post(desk.url + push_path("team-a", "a"), data=endless()) as answer:
        assert answer.status == 413


async def test_too_fast_is_told_when_to_come_again_and_hinders_nobody_else(desk: Desk) -> None:
    for _ in range(PUSHES.burst):
        assert (await desk.push())[0] == 202
    status, text, retry_after = await desk.push()
    assert (status, retry_after) == (429, "2")
    assert "too many pushes" in text
    add_job(desk.store, "b")
    desk.server.tokens["token-of-b"] = (audience("uid-b"), "pod-b")
    assert (await desk.push(job="b", token="token-of-b"))[0] == 202
    desk.now_s += 2
    assert (await desk.push())[0] == 202


async def test_a_strangers_pushes_do_not_use_up_the_jobs_allowance(desk: Desk) -> None:
    for _ in range(PUSHES.burst * 2):
        await desk.push(token="made-up")
    assert desk.counted("rate") > 0
    assert (await desk.push())[0] == 202


async def test_a_token_is_reviewed_once_a_minute_and_a_wrong_one_too(desk: Desk) -> None:
    for _ in range(3):
        await desk.push()
        await desk.push(token="made-up")
    assert desk.server.reviews == 2
    desk.now_s += REMEMBERED_REFUSAL_S
    await desk.push()
    await desk.push(token="made-up")
    assert desk.server.reviews == 3
    desk.now_s += REMEMBERED_S - REMEMBERED_REFUSAL_S
    await desk.push()
    assert desk.server.reviews == 4


async def test_strangers_cannot_make_us_ask_without_end_and_known_pods_are_heard_meanwhile(desk: Desk) -> None:
    assert (await desk.push())[0] == 202
    answers = [await desk.push(token=f"made-up-{number}") for number in range(REVIEWS.burst + 20)]
    assert {status for status, _, _ in answers} == {401, 429}
    assert desk.server.reviews <= REVIEWS.burst
    assert desk.counted("reviews") >= 20
    assert (await desk.push())[0] == 202


async def test_requests_at_once_are_bounded(desk: Desk) -> None:
    desk.server.hold = asyncio.Event()
    pushes = [asyncio.create_task(desk.push(token=f"t-{number}")) for number in range(IN_FLIGHT + 10)]
    waiting = set(pushes)
    while len(waiting) > IN_FLIGHT:
        _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    desk.server.hold.set()
    answers = [await task for task in pushes]
    assert [status for status, _, _ in answers].count(503) == 10
    assert all(retry_after == "2" for status, _, retry_after in answers if status == 503)


async def test_a_replica_that_knows_too_little_asks_to_come_again(desk: Desk) -> None:
    desk.complete = False
    status, text, retry_after = await desk.push()
    assert (status, retry_after) == (503, "5")
    assert "has not read the cluster yet" in text
    desk.complete = True
    assert (await desk.push())[0] == 202


async def test_an_api_server_that_is_away_refuses_nobody_for_good(desk: Desk) -> None:
    desk.server.fails_with = 500
    status, text, retry_after = await desk.push()
    assert (status, retry_after) == (503, "10")
    assert "cannot be checked now" in text
    assert TOKEN not in text
    desk.server.fails_with = 0
    assert (await desk.push())[0] == 202


async def test_plain_http_is_not_heard(desk: Desk) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.post(desk.url.replace("https", "http") + push_path("team-a", "a"))


def test_what_is_kept_of_a_push_fits_the_contract() -> None:
    assert Progress.from_wire(SAID) == progress(42.0)
