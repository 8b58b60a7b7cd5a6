"""News become few writes: coalesced, each job in its time, and never more than the budget."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from finetune_operator.decide.types import Key
from finetune_operator.metrics import Metrics
from finetune_operator.progress.inbox import Inbox, News
from finetune_operator.progress.writer import FIELD_MANAGER, WRITES_PER_ROUND, Writer
from finetune_operator.store import Store
from tests.decide.world import START
from tests.operator.progress.api_server import ApiServer, served
from tests.operator.progress.jobs import add_job, progress


class Desk:
    """A writer with everything around it, and a clock moved by hand."""

    def __init__(self, api: Any, server: ApiServer) -> None:
        self.server = server
        self.store, self.inbox = Store(), Inbox()
        self.at_s = 0.0
        self.writer = Writer(
            api,
            self.store,
            self.inbox,
            Metrics(),
            lambda: START + timedelta(seconds=self.at_s),
            lambda: self.at_s,
        )

    def job(self, name: str) -> None:
        self.server.objects[name] = add_job(self.store, name)

    def says(self, name: str, percent: float, **changes: Any) -> None:
        said = progress(percent, updated_at=START + timedelta(seconds=self.at_s), **changes)
        self.inbox.offer(Key("team-a", name), News(f"uid-{name}", f"{name}-train-1", said))

    def status(self, name: str) -> dict[str, Any]:
        return dict(self.server.objects[name]["status"])

    async def rounds(self, count: int) -> int:
        """So many rounds, a second apart; the writes they made."""
        before = len(self.server.patches)
        for _ in range(count):
            assert await self.writer.round() == ""
            self.at_s += 1
        return len(self.server.patches) - before


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    server = ApiServer()
    async with served(server) as api:
        yield Desk(api, server)


async def test_the_newest_is_written_with_the_column_made_from_it(desk: Desk) -> None:
    desk.job("a")
    desk.says("a", 10)
    desk.says("a", 12)
    assert await desk.rounds(1) == 1
    assert desk.status("a")["live"]["percent"] == 12
    assert desk.status("a")["progress"] == "1/5 train 12% 10m left"
    assert desk.status("a")["phase"] == "Training", "nothing else is touched"
    [(_, body, manager)] = desk.server.patches
    assert manager == FIELD_MANAGER
    assert set(body["status"]) == {"live", "progress"}
    assert len(desk.inbox) == 0
    entry = desk.store.finetune_jobs.get(Key("team-a", "a"))
    assert entry is not None
    assert entry.version == 6, "its own write is known at once"


async def test_a_job_that_pushes_every_second_is_written_every_15_seconds(desk: Desk) -> None:
    desk.job("a")
    writes = 0
    for second in range(60):
        desk.says("a", float(second))
        writes += await desk.rounds(1)
    assert writes == 4
    assert desk.status("a")["live"]["percent"] == 45


async def test_the_same_news_are_a_sign_of_life_every_two_minutes(desk: Desk) -> None:
    desk.job("a")
    writes = 0
    for _ in range(24):
        desk.says("a", 10)
        writes += await desk.rounds(10)
    assert writes == 2


async def test_many_jobs_share_one_budget_and_all_get_their_turn(desk: Desk) -> None:
    names = [f"job-{number}" for number in range(50)]
    for name in names:
        desk.job(name)
        desk.says(name, 20)
    assert await desk.rounds(1) == WRITES_PER_ROUND
    for name in names:
        desk.says(name, 30)
    assert await desk.rounds(4) == 40
    assert all("live" in desk.status(name) for name in names)
    assert [desk.status(name)["live"]["percent"] for name in names[WRITES_PER_ROUND:]] == [30] * 40


async def test_a_field_that_is_gone_is_removed(desk: Desk) -> None:
    desk.job("a")
    desk.says("a", 10)
    await desk.rounds(20)
    desk.says("a", 11, eta_seconds=None)
    await desk.rounds(1)
    assert "etaSeconds" not in desk.status("a")["live"]
    assert desk.status("a")["progress"] == "1/5 train 11%"


async def test_who_loses_a_race_waits_for_the_watch_and_tries_again(desk: Desk) -> None:
    desk.job("a")
    desk.says("a", 10)
    stored = desk.server.objects["a"]
    desk.server.objects["a"] = {**stored, "metadata": stored["metadata"] | {"resourceVersion": "9"}}
    await desk.rounds(2)
    assert "live" not in desk.status("a")
    seen = add_job(Store(), "a")
    seen["metadata"]["resourceVersion"] = "9"
    desk.store.finetune_jobs.put(seen)
    await desk.rounds(1)
    assert desk.status("a")["live"]["percent"] == 10


async def test_news_of_an_attempt_that_ended_or_of_a_job_that_went_are_forgotten(desk: Desk) -> None:
    for name in ("ended", "gone", "new", "next"):
        desk.job(name)
        desk.says(name, 10)
    ended = add_job(Store(), "ended")
    ended["status"]["stages"][0]["state"] = "Succeeded"
    desk.store.finetune_jobs.put(ended | {"metadata": ended["metadata"] | {"resourceVersion": "6"}})
    desk.store.finetune_jobs.remove(Key("team-a", "gone"), "uid-gone")
    again = add_job(Store(), "new")
    desk.store.finetune_jobs.put(again | {"metadata": again["metadata"] | {"uid": "other", "resourceVersion": "6"}})
    following = add_job(Store(), "next")
    following["status"]["stages"][0]["jobName"] = "next-train-1-of-run-2"
    desk.store.finetune_jobs.put(following | {"metadata": following["metadata"] | {"resourceVersion": "6"}})
    assert await desk.rounds(1) == 0
    assert len(desk.inbox) == 0


async def test_older_news_never_replace_what_another_replica_wrote(desk: Desk) -> None:
    desk.job("a")
    desk.says("a", 10)
    newer = add_job(Store(), "a")
    newer["status"]["live"] = progress(30, updated_at=START + timedelta(seconds=5)).to_wire()
    desk.store.finetune_jobs.put(newer | {"metadata": newer["metadata"] | {"resourceVersion": "6"}})
    assert await desk.rounds(1) == 0
    assert len(desk.inbox) == 0


async def test_news_of_the_second_in_which_the_last_were_written_are_not_lost(desk: Desk) -> None:
    desk.job("a")
    desk.says("a", 10)
    assert await desk.writer.round() == ""
    desk.says("a", 55)
    assert await desk.rounds(20) == 1
    assert desk.status("a")["live"]["percent"] == 55


async def test_an_api_server_that_is_away_is_asked_once_a_round_and_nothing_is_lost(desk: Desk) -> None:
    for number in range(5):
        desk.job(f"job-{number}")
        desk.says(f"job-{number}", 10)
    desk.server.fails_with = 503
    assert "503" in await desk.writer.round()
    assert len(desk.server.patches) == 1
    assert len(desk.inbox) == 5
    desk.server.fails_with = 0
    assert await desk.rounds(1) == 5
