"""The lease against a fake API server and a clock of the test's."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest

from finetune_operator import leader as module
from finetune_operator.api import ApiError
from finetune_operator.leader import Leader, NotLeading, Timing


class FakeApi:
    """One Lease, with optimistic locking."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.version = 0
        self.broken: Exception | None = None

    async def request(self, method: str, path: str, *, body: Any = None, **_: Any) -> dict[str, Any]:
        if self.broken is not None:
            raise self.broken
        if method == "GET":
            if self.lease is None:
                raise ApiError(404, "NotFound", "no lease")
            return copy.deepcopy(self.lease)
        if method == "POST" and self.lease is not None:
            raise ApiError(409, "AlreadyExists", "lease")
        if method == "PUT" and body["metadata"].get("resourceVersion") != str(self.version):
            raise ApiError(409, "Conflict", "lease")
        self.version += 1
        self.lease = copy.deepcopy(body)
        assert self.lease is not None
        self.lease["metadata"]["resourceVersion"] = str(self.version)
        return copy.deepcopy(self.lease)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Sleeping moves the clock instead of waiting."""
    made = Clock()
    pause = asyncio.sleep

    async def sleep(seconds: float) -> None:
        made.now += seconds
        await pause(0)

    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    return made


def candidate(api: FakeApi, clock: Clock, name: str) -> Leader:
    return Leader(api, "ns", "lease", name, timing=Timing(15), clock=clock)  # type: ignore[arg-type]


async def test_the_first_one_leads_and_others_do_not(clock: Clock) -> None:
    api = FakeApi()
    first, second = candidate(api, clock, "a"), candidate(api, clock, "b")
    await first.acquire()
    assert first.leads
    assert not await second._try("acquire")
    with pytest.raises(NotLeading):
        second.check()


async def test_a_follower_waits_the_whole_lease_after_the_last_sign_of_life(clock: Clock) -> None:
    api = FakeApi()
    first, second = candidate(api, clock, "a"), candidate(api, clock, "b")
    await first.acquire()
    assert not await second._try("acquire")
    clock.now += 14
    assert await first._try("renew")
    clock.now += 14
    assert not await second._try("acquire"), "the renewal was a sign of life"
    clock.now += 14
    assert not await second._try("acquire"), "14 s after the follower saw it"
    clock.now += 2
    assert await second._try("acquire")
    assert api.lease is not None
    assert api.lease["spec"]["leaseTransitions"] == 1


async def test_a_leader_stops_before_anybody_may_take_over(clock: Clock) -> None:
    api = FakeApi()
    first = candidate(api, clock, "a")
    await first.acquire()
    clock.now += 9.9
    first.check()
    clock.now += 0.2
    with pytest.raises(NotLeading):
        first.check()
    assert Timing(15).renew_deadline_s < Timing(15).lease_s


@pytest.mark.parametrize(
    "error", [ApiError(0, "Unreachable", "refused"), ApiError(500, "", "etcd"), OSError("x"), ValueError("y")]
)
async def test_any_failure_is_a_failed_renewal(clock: Clock, error: Exception) -> None:
    api = FakeApi()
    first = candidate(api, clock, "a")
    await first.acquire()
    api.broken = error
    started = clock.now
    await first.lead()
    assert not first.leads
    assert 10 <= clock.now - started <= 15


async def test_short_trouble_is_survived(clock: Clock) -> None:
    api = FakeApi()
    first = candidate(api, clock, "a")
    await first.acquire()
    api.broken = OSError("x")
    clock.now += 6
    assert not await first._try("renew")
    assert first.leads
    api.broken = None
    assert await first._try("renew")
    clock.now += 9
    assert first.leads


async def test_a_leader_that_finds_another_holder_stops_at_once(clock: Clock) -> None:
    api = FakeApi()
    first, second = candidate(api, clock, "a"), candidate(api, clock, "b")
    await first.acquire()
    await second._try("acquire")
    clock.now += 16
    assert await second._try("acquire")
    assert not await first._try("renew")
    assert not first.leads


async def test_released_leadership_is_taken_at_once(clock: Clock) -> None:
    api = FakeApi()
    first, second = candidate(api, clock, "a"), candidate(api, clock, "b")
    await first.acquire()
    await first.release()
    assert not first.leads
    assert await second._try("acquire")


async def test_of_two_that_see_a_free_lease_one_wins(clock: Clock) -> None:
    api = FakeApi()
    first, second = candidate(api, clock, "a"), candidate(api, clock, "b")
    won = await asyncio.gather(first._try("acquire"), second._try("acquire"))
    assert sorted(won) == [False, True]
