"""Writes what the inbox holds into the jobs' statuses: few writes, however many jobs push. Every replica does so.

Not only the leader: a progress is an observation, not a decision. The patch touches `status.live` and the column made
from it by the leader's own function, and carries uid and resourceVersion: it lands only on the very status it was
judged against, in which that attempt runs. Whoever loses the race looks again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime

from pydantic import ValidationError

from finetune_api.finetunejob import FineTuneJob
from finetune_api.job.status import FineTuneJobStatus
from finetune_operator.api import FINETUNE_JOBS, MERGE_PATCH, Api, ApiError
from finetune_operator.decide.live import QUIET_S, fits, write_at
from finetune_operator.decide.present import progress_text
from finetune_operator.decide.types import Key
from finetune_operator.merge_patch import merge_patch
from finetune_operator.metrics import Metrics
from finetune_operator.progress.inbox import Inbox, News
from finetune_operator.store import Entry, Parsed, Store

logger = logging.getLogger(__name__)

ROUND_S = 1.0
WRITES_PER_ROUND = 10
"""Of each replica, over all jobs. A job that has to wait shows older news, nothing else."""
LARGEST_PAUSE_S = 60.0
TIMEOUT_S = 10.0
FIELD_MANAGER = "finetune-progress"


def next_status(status: FineTuneJobStatus, news: News, now: datetime) -> FineTuneJobStatus | None:
    """The status with the news in it; None when another attempt runs or newer news are told. Pure."""
    newest = status.stages[-1] if status.stages else None
    if newest is None or newest.job_name != news.job_name or not fits(status, news.progress):
        return None
    told, heard = (live.updated_at if live is not None else None for live in (status.live, news.progress))
    if fits(status, status.live) and told is not None and heard is not None and told > heard:
        return None
    after = status.model_copy(update={"live": news.progress})
    return after.model_copy(update={"progress": progress_text(after, now)})


class Writer:
    """One round a second: the jobs whose news are due, at most `WRITES_PER_ROUND` of them."""

    def __init__(
        self,
        api: Api,
        store: Store,
        inbox: Inbox,
        metrics: Metrics,
        wall: Callable[[], datetime],
        clock: Callable[[], float],
    ) -> None:
        """`wall` is compared with times in objects; `clock` counts seconds and never steps back."""
        self._api = api
        self._store = store
        self._inbox = inbox
        self._metrics = metrics
        self._wall = wall
        self._clock = clock
        self._written: dict[Key, float] = {}

    async def run(self) -> None:
        """Until cancelled."""
        pause_s = ROUND_S
        while True:
            await asyncio.sleep(pause_s)
            trouble = await self.round()
            self._metrics.progress_waiting(len(self._inbox))
            if trouble and pause_s <= ROUND_S:
                logger.warning("progress is not written; it waits in memory", extra={"error": trouble})
            pause_s = min(LARGEST_PAUSE_S, pause_s * 2) if trouble else ROUND_S

    async def round(self) -> str:
        """Write what is due. Returns what hinders all of it (an API server that is away); empty when nothing does."""
        started = self._clock()
        self._written = {key: at for key, at in self._written.items() if started - at < QUIET_S}
        tries = 0
        for key, news in self._inbox:
            if tries >= WRITES_PER_ROUND:
                break
            entry = self._store.finetune_jobs.get(key)
            after = self._due(key, news, entry)
            if after is None or entry is None:
                continue
            tries += 1
            try:
                await self._write(entry, after)
            except ApiError as error:
                if error.status == 409:
                    # Another writer was first; the watch brings what it wrote, and the news wait for that.
                    self._metrics.progress_write("conflict")
                elif error.status == 404:
                    self._inbox.done(key, news)
                else:
                    self._metrics.progress_write("failed")
                    return str(error)
            else:
                self._written[key] = self._clock()
                self._inbox.done(key, news)
                self._metrics.progress_write("written")
        return ""

    def _due(self, key: Key, news: News, entry: Entry[Parsed[FineTuneJob]] | None) -> FineTuneJobStatus | None:
        """The status to write now; None when it is too early, or when the news are of no use any more."""
        if key in self._written:
            return None
        if entry is None or entry.uid != news.uid:
            self._inbox.done(key, news)
            return None
        try:
            status = entry.value.model.status
        except ValidationError:
            status = None
        now = self._wall()
        after = next_status(status, news, now) if status is not None else None
        if status is None or after is None:
            self._inbox.done(key, news)
            return None
        due = write_at(status.live, news.progress)
        return None if due is not None and now < due else after

    async def _write(self, entry: Entry[Parsed[FineTuneJob]], after: FineTuneJobStatus) -> None:
        before = entry.value.wire.get("status", {})
        wire = after.to_wire()
        patch = merge_patch(before, {**before, "live": wire["live"], "progress": wire["progress"]})
        metadata = {"uid": entry.uid, "resourceVersion": entry.value.wire["metadata"]["resourceVersion"]}
        written = await self._api.request(
            "PATCH",
            FINETUNE_JOBS.path(entry.key.namespace, entry.key.name, "status"),
            query={"fieldManager": FIELD_MANAGER},
            body={"metadata": metadata, "status": patch},
            content_type=MERGE_PATCH,
            timeout_s=TIMEOUT_S,
            attempts=1,
            guarded=False,
        )
        self._store.finetune_jobs.put(written)
