"""The loop of a local run: observe, decide, act, until the job is finished or suspended."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from finetune_api.finetunejob import FineTuneJob
from finetune_api.job.status import FINISHED_PHASES, FineTuneJobStatus
from finetune_api.stages import Progress
from finetune_cli.errors import CliError
from finetune_cli.local.apply import edit_job, with_spec
from finetune_cli.local.executor import Clock, LocalExecutor
from finetune_cli.local.objects import ConflictError
from finetune_operator.decide import decide
from finetune_operator.decide.types import Decision, Key, Observed

POLL_S = 0.2
ALIVE_STATES = frozenset({"Queued", "Pending", "Running", "Terminating"})


class View(Protocol):
    """Where a run is shown."""

    def update(self, status: FineTuneJobStatus, progress: Progress | None) -> None:
        """Show the state after a step."""

    def note(self, text: str) -> None:
        """Show one line."""


@dataclass
class Interrupts:
    """Ctrl-C, counted: first suspend, then kill, then leave."""

    count: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def press(self) -> None:
        """One more Ctrl-C."""
        self.count += 1
        self.changed.set()


def _is_over(observed: Observed, decision: Decision, earlier_attempts: int) -> bool:
    if decision.starts or decision.stops or decision.version is not None:
        return False
    if any(run.state in ALIVE_STATES for run in observed.runs.values()):
        return False
    status = decision.status
    # Nobody will create a pool or a right here: what is not accepted now never will be.
    refused = status.resolved is None and bool(status.reason)
    gave_up = len(status.stages) > earlier_attempts and _never_reached_storage(status)
    return status.phase in FINISHED_PHASES or status.phase == "Suspended" or refused or gave_up


def _never_reached_storage(status: FineTuneJobStatus) -> bool:
    """Whether storage did not answer even once: a person is waiting, and a wrong endpoint is likelier than an outage.

    Typing the same command again tries again; in a cluster the operator does so by itself.
    """
    newest = status.stages[-1] if status.stages else None
    return (
        status.reason == "Retrying"
        and status.results.prepare is None
        and newest is not None
        and newest.cause == "StorageUnavailable"
    )


class Driver:
    """Drives one job of a state folder; the folder's run lock is held by the caller."""

    def __init__(self, executor: LocalExecutor, clock: Clock, view: View, interrupts: Interrupts) -> None:
        self._executor = executor
        self._clock = clock
        self._view = view
        self._interrupts = interrupts
        self._handled = 0

    async def drive(self, key: Key) -> FineTuneJob:
        """Until the job is finished or suspended and no process of it is left. Returns it as stored then.

        Raises KeyboardInterrupt at the third Ctrl-C.
        """
        earlier_attempts: int | None = None
        while True:
            self._handle_interrupts(key)
            observed = await self._executor.observe(key)
            if observed is None:
                raise CliError(f"FineTuneJob {key.name} has been removed from {self._executor.state.root}")
            if earlier_attempts is None:
                earlier_attempts = len(observed.job.status.stages) if observed.job.status is not None else 0
            decision = decide(observed, self._clock())
            try:
                await self._executor.act(observed, decision)
            except ConflictError:
                continue
            self._view.update(decision.status, observed.progress)
            if _is_over(observed, decision, earlier_attempts):
                job = self._executor.store.get(FineTuneJob, key.namespace, key.name)
                return job if job is not None else observed.job
            if decision.status == observed.job.status and not (decision.starts or decision.stops or decision.version):
                await self._wait(key, observed, decision.wake_at)

    def _handle_interrupts(self, key: Key) -> None:
        while self._handled < self._interrupts.count:
            self._handled += 1
            if self._handled == 1:
                edit_job(self._executor.store, key, lambda job: with_spec(job, suspend=True))
                self._view.note("Suspending: the stage saves its work and ends. Ctrl-C again kills it at once.")
            elif self._handled == 2:
                job = self._executor.store.get(FineTuneJob, key.namespace, key.name)
                if job is not None:
                    self._executor.kill_all(job)
                self._view.note("Killed. The last saved checkpoint stays; the same command resumes from it.")
            else:
                raise KeyboardInterrupt
        self._interrupts.changed.clear()

    def _look(self, key: Key, job: FineTuneJob) -> tuple[dict[str, str], tuple[int, ...]]:
        """States of the processes by name, and times of the files that change: far cheaper than to observe."""
        states: dict[str, str] = {}
        files = [self._executor.store.path(FineTuneJob, key.namespace, key.name)]
        for name, attempt in self._executor.attempts(job).items():
            run = attempt.observe()
            if run is not None:
                states[name] = run.state
                files.append(attempt.progress_file)
        return states, tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in files)

    async def _wait(self, key: Key, observed: Observed, wake_at: datetime | None) -> None:
        """Until something is new, the time has come, or Ctrl-C was pressed."""
        seen: dict[str, str] = {name: run.state for name, run in observed.runs.items()}
        states, times = self._look(key, observed.job)
        # Compared with what was decided on, so that nothing between observing and here is missed.
        while states == seen and (wake_at is None or self._clock() < wake_at):
            try:
                await asyncio.wait_for(self._interrupts.changed.wait(), POLL_S)
            except TimeoutError:
                states, now_times = self._look(key, observed.job)
                if now_times != times:
                    return
            else:
                return
