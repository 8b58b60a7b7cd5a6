"""Watches that die, or do not end when they are asked to: kopf is stood in for, because its hang cannot be provoked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from finetune_operator import supervise
from finetune_operator.health import Health
from finetune_operator.metrics import Metrics
from finetune_operator.store import Store
from finetune_operator.supervise import Supervisor
from finetune_operator.watch import Life, Watches

DEADLINE_S = 30


class Kopf:
    """Lives of kopf: one that ends when asked, or only when the test is over."""

    def __init__(self) -> None:
        self.stubborn = True
        self.flags: list[Any] = []
        self.over = threading.Event()

    def live(self, registry: Any, namespaces: Any, flag: Any) -> str:
        self.flags.append(flag)
        if self.stubborn:
            self.over.wait(DEADLINE_S)
            return "at last"
        flag.result(timeout=DEADLINE_S)
        return "asked to end"


@pytest.fixture
def kopf(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kopf]:
    made = Kopf()
    monkeypatch.setattr(supervise, "_live", made.live)
    monkeypatch.setattr(supervise, "ENDS_WITHIN_S", 0.05)
    monkeypatch.setattr(supervise, "RECHECK_S", 0.0)
    monkeypatch.setattr(Supervisor, "missing", _nothing)
    monkeypatch.setattr(Supervisor, "_look_for_kueue", _nothing)
    yield made
    made.over.set()


async def _nothing(_: Supervisor) -> str:
    return ""


def supervisor(watches: Watches, health: Health) -> Supervisor:
    nothing = cast("Any", SimpleNamespace(clear=lambda: None, add=lambda _: None))
    return Supervisor(nothing, nothing, watches, nothing, health, Metrics(), None, 60)


def made() -> tuple[Watches, Health]:
    return Watches(Store(), lambda _: None), Health(lambda: 0.0)


async def reached(condition: Any) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - another thread fulfils it
            await asyncio.sleep(0.001)


async def test_watches_that_do_not_end_when_asked_are_left_behind_and_begun_anew(kopf: Kopf) -> None:
    watches, health = made()
    tested = supervisor(watches, health)
    task = asyncio.create_task(tested.run())
    await reached(lambda: len(kopf.flags) == 1)
    assert health.reasons == []
    kopf.stubborn = False
    tested._ask_to_end()
    await reached(lambda: len(kopf.flags) == 2)
    await reached(lambda: health.reasons == [])
    assert not task.done()
    tested._ask_to_end()
    await reached(lambda: len(kopf.flags) == 3)
    task.cancel()


async def test_watches_that_never_end_when_asked_end_the_process(kopf: Kopf) -> None:
    tested = supervisor(*made())
    task = asyncio.create_task(tested.run())
    for life in range(1, supervise.MOST_STUCK + 2):
        await reached(lambda life=life: len(kopf.flags) == life)
        assert not task.done()
        tested._ask_to_end()
    with pytest.raises(RuntimeError, match="did not end when asked"):
        await asyncio.wait_for(task, DEADLINE_S)


async def test_watches_that_end_by_themselves_are_begun_anew(kopf: Kopf) -> None:
    tested = supervisor(*made())
    task = asyncio.create_task(tested.run())
    await reached(lambda: len(kopf.flags) == 1)
    kopf.over.set()
    await reached(lambda: len(kopf.flags) >= 2)
    assert not task.done()
    task.cancel()


async def test_what_a_life_says_that_is_over_is_not_heard() -> None:
    heard: list[str] = []
    life = Life(asyncio.get_running_loop())
    life.tell(heard.append, "alive")
    await asyncio.sleep(0)
    life.tell(heard.append, "told before its end, heard after")
    life.over = True
    await asyncio.sleep(0)
    assert heard == ["alive"]
