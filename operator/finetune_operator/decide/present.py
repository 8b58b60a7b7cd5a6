"""What people see: the progress column and the Events of a transition. Pure."""

from __future__ import annotations

from datetime import datetime

from finetune_api.job.status import FINISHED_PHASES, FineTuneJobStatus
from finetune_operator.decide.live import fits, told_silence_s
from finetune_operator.decide.stages import ORDER
from finetune_operator.decide.steps import resumed_text
from finetune_operator.decide.types import Event

EVENT_MESSAGE_LIMIT = 1000


def progress_text(status: FineTuneJobStatus, now: datetime) -> str:
    """For example `3/5 train 42% 12m left`, or `3/5 train 42% (no news for 10m)`."""
    if status.phase == "Succeeded":
        return "done" if status.reason in ("Unchanged", "BaselineSuffices") else f"{len(ORDER)}/{len(ORDER)}"
    done = sum(1 for name in ORDER if getattr(status.results, name) is not None)
    newest = status.stages[-1] if status.stages else None
    if newest is None:
        return f"0/{len(ORDER)}"
    text = f"{min(done + 1, len(ORDER))}/{len(ORDER)} {newest.name}"
    live = status.live
    if live is None or not fits(status, live):
        return text
    text += f" {live.percent:.0f}%"
    silent_s = told_silence_s(live, now)
    if silent_s:
        return f"{text} (no news for {_short_duration(silent_s)})"
    return text if live.eta_seconds is None else f"{text} {_short_duration(live.eta_seconds)} left"


def _short_duration(seconds: float) -> str:
    """`<1m`, `12m`, `3h05m` or `2d4h`: what fits into a column."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "<1m"
    if minutes < 60:
        return f"{minutes}m"
    hours = minutes // 60
    return f"{hours}h{minutes % 60:02d}m" if hours < 24 else f"{hours // 24}d{hours % 24}h"


def transition_events(before: FineTuneJobStatus, after: FineTuneJobStatus) -> list[Event]:
    """Events for what changed between two statuses of one job."""
    events = []
    if after.run > before.run:
        events.append(Event("Normal", "RunStarted", f"run {after.run} started"))
        before = FineTuneJobStatus(run=after.run)
    known = {(stage.name, stage.attempt): stage for stage in before.stages}
    for stage in after.stages:
        old = known.get((stage.name, stage.attempt))
        where = f"{stage.name} attempt {stage.attempt}"
        if old is None:
            events.append(Event("Normal", "StageStarting", f"{where}: Job {stage.job_name}"))
        resumed = resumed_text(stage)
        if resumed and (old is None or resumed != resumed_text(old)):
            events.append(Event("Normal", "Resumed", f"{where}: {resumed}"))
        if (old.state if old else "") == stage.state:
            if old is not None and stage.cause and stage.cause != old.cause:
                events.append(Event("Warning", stage.cause, f"{where}: {stage.message}"))
        elif stage.state == "Succeeded":
            events.append(Event("Normal", "StageSucceeded", where))
        elif stage.state == "Failed":
            retried = "" if stage.retry_at is None else "; it is tried again"
            events.append(Event("Warning", stage.cause or "StageFailed", f"{where}: {stage.message}{retried}"))
    changed = (before.phase, before.reason) != (after.phase, after.reason)
    if changed and after.phase in FINISHED_PHASES:
        bad = after.phase == "Failed" or after.reason == "GateFailed"
        events.append(Event("Warning" if bad else "Normal", after.reason or after.phase, after.message))
    elif changed and after.phase in ("Suspended", "Queued"):
        events.append(Event("Normal", after.phase, after.message))
    elif changed and after.resolved is None and after.reason:
        events.append(Event("Warning", after.reason, after.message))
    return [Event(event.type, event.reason, event.message[:EVENT_MESSAGE_LIMIT]) for event in events]
