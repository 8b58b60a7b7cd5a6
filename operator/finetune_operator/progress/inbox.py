"""The newest progress of each job that is not in its status yet: coalesced in memory, oldest news first. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from finetune_api.stages import Progress
from finetune_operator.decide.types import Key


@dataclass(frozen=True)
class News:
    """What one job's attempt said last. `job_name` names the attempt for good, unlike its number."""

    uid: str
    job_name: str
    progress: Progress


class Inbox:
    """At most one entry per job; the newest replaces what waits and keeps its place in the line."""

    def __init__(self) -> None:
        """Start empty."""
        self._news: dict[Key, News] = {}

    def __len__(self) -> int:
        return len(self._news)

    def __iter__(self) -> Iterator[tuple[Key, News]]:
        return iter(list(self._news.items()))

    def offer(self, key: Key, news: News) -> None:
        """The newest progress wins."""
        self._news[key] = news

    def done(self, key: Key, news: News) -> None:
        """This is settled; what came meanwhile stays, and queues behind the others."""
        waiting = self._news.pop(key, None)
        if waiting is not None and waiting is not news:
            self._news[key] = waiting
