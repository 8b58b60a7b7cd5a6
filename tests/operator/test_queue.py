"""Keys are due once, one at a time, with one timer and a back-off each; the clock is the test's."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.queue import LARGEST_BACKOFF_S, Schedule, Workers


def test_a_key_added_many_times_is_due_once() -> None:
    schedule: Schedule[str] = Schedule()
    for _ in range(5):
        schedule.add("a", 0)
    assert schedule.take(0) == "a"
    assert schedule.take(0) is None


def test_keys_are_taken_in_the_order_of_waiting() -> None:
    schedule: Schedule[str] = Schedule()
    for key in ("a", "b", "c", "a"):
        schedule.add(key, 0)
    assert [schedule.take(0) for _ in range(4)] == ["a", "b", "c", None]


def test_a_key_being_worked_on_is_not_taken_twice_but_again_afterwards() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.add("a", 0)
    assert schedule.take(0) == "a"
    schedule.add("a", 1)
    assert schedule.take(1) is None
    schedule.finish("a", 2)
    assert schedule.take(2) == "a"


def test_one_timer_per_key_the_last_one_counts() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.add_at("a", 100)
    schedule.add_at("a", 5)
    assert schedule.next_timer() == 5
    assert schedule.take(4) is None
    assert schedule.take(5) == "a"
    schedule.finish("a", 6)
    assert schedule.next_timer() is None
    assert schedule.take(200) is None


def test_work_takes_the_timer_with_it() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.add_at("a", 10)
    schedule.add("a", 0)
    assert schedule.take(0) == "a"
    schedule.finish("a", 1, again_at=50)
    assert schedule.next_timer() == 50


def test_failures_back_off_to_a_limit_and_success_forgets_them() -> None:
    schedule: Schedule[str] = Schedule()
    now, delays = 0.0, []
    schedule.add("a", now)
    for _ in range(12):
        assert schedule.take(now) == "a"
        schedule.finish("a", now, failed=True)
        due = schedule.next_timer()
        assert due is not None
        delays.append(due - now)
        now = due
    assert delays[:4] == [1, 2, 4, 8]
    assert delays[-1] == LARGEST_BACKOFF_S
    assert schedule.take(now) == "a"
    schedule.finish("a", now)
    schedule.add("a", now)
    schedule.take(now)
    schedule.finish("a", now, failed=True)
    assert schedule.next_timer() == now + 1


def test_jitter_scales_the_back_off() -> None:
    schedule: Schedule[str] = Schedule(jitter=lambda: 1.25)
    schedule.add("a", 0)
    schedule.take(0)
    schedule.finish("a", 0, failed=True)
    assert schedule.next_timer() == 1.25


def test_a_cleared_schedule_forgets_all_but_work_in_progress() -> None:
    schedule: Schedule[str] = Schedule()
    for key in ("a", "b"):
        schedule.add(key, 0)
    schedule.add_at("c", 5)
    assert schedule.take(0) == "a"
    schedule.clear()
    assert schedule.take(100) is None
    assert schedule.longest_work_s(100) == 100
    schedule.finish("a", 100)
    assert schedule.longest_work_s(100) == 0


@given(st.lists(st.tuples(st.sampled_from(["add", "at", "take", "ok", "fail"]), st.sampled_from("abc"))))
def test_no_key_is_lost_and_none_is_worked_on_twice(steps: list[tuple[str, str]]) -> None:
    schedule: Schedule[str] = Schedule()
    working: set[str] = set()
    wanted: set[str] = set()
    for now, (step, key) in enumerate(steps):
        if step == "add":
            schedule.add(key, now)
            wanted.add(key)
        elif step == "at":
            schedule.add_at(key, now + 3)
            wanted.add(key)
        elif step == "take":
            taken = schedule.take(now)
            if taken is not None:
                assert taken not in working
                working.add(taken)
                wanted.discard(taken)
        elif key in working:
            schedule.finish(key, now, failed=step == "fail")
            working.discard(key)
            if step == "fail":
                wanted.add(key)
    for key in working:
        schedule.finish(key, len(steps))
    late = len(steps) + 2 * LARGEST_BACKOFF_S
    found = set()
    while (taken := schedule.take(late)) is not None:
        found.add(taken)
    assert wanted <= found


@pytest.mark.parametrize("count", [1, 4])
async def test_workers_work_on_every_key_and_survive_a_bad_one(count: int) -> None:
    loop = asyncio.get_running_loop()
    done: list[str] = []
    tried = asyncio.Event()
    finished = asyncio.Event()

    async def work(key: str) -> float | None:
        if key == "bad" and not tried.is_set():
            tried.set()
            raise RuntimeError("broken")
        done.append(key)
        if len(done) == 4:
            finished.set()
        return None

    workers: Workers[str] = Workers(work, count, Schedule(jitter=lambda: 0.001), loop.time)
    running = asyncio.create_task(workers.run())
    for key in ("bad", "a", "b", "c"):
        workers.add(key)
    async with asyncio.timeout(30):
        await finished.wait()
    running.cancel()
    assert sorted(done) == ["a", "b", "bad", "c"]


async def test_work_that_asks_to_be_called_again_is() -> None:
    calls = 0
    twice = asyncio.Event()

    async def work(key: str) -> float | None:
        nonlocal calls
        calls += 1
        if calls == 2:
            twice.set()
            return None
        return 0.001

    workers: Workers[str] = Workers(work, 1, Schedule(), asyncio.get_running_loop().time)
    running = asyncio.create_task(workers.run())
    workers.add("a")
    async with asyncio.timeout(30):
        await twice.wait()
    running.cancel()
    assert calls == 2
