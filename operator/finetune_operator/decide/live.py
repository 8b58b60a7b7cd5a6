"""Live progress: whether it is about the attempt that runs, when it is worth a write, and when it is stale. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

from finetune_api.job.status import FineTuneJobStatus
from finetune_api.stages import Progress
from finetune_operator.decide.attempts import is_active
from finetune_operator.decide.draft import Draft
from finetune_operator.decide.steps import note_resume

STALE_S = 300
"""Without news for so long the column says so. It is information only: missing progress never fails a run."""
QUIET_S = 15
"""Seconds between two writes of one job's progress, at the least."""
HEARTBEAT_S = 120
"""Seconds after which news that look the same are written all the same: `updatedAt` tells them from silence."""
_ETA_CHANGE = 0.2


def fits(status: FineTuneJobStatus, live: Progress | None) -> bool:
    """Whether the progress is about the attempt that runs now."""
    newest = status.stages[-1] if status.stages else None
    if live is None or newest is None or not is_active(newest):
        return False
    return (live.stage, live.attempt) == (newest.name, newest.attempt)


def _newer(one: Progress | None, other: Progress | None) -> Progress | None:
    if one is None or other is None:
        return one or other
    if one.updated_at is None or other.updated_at is None:
        return other if one.updated_at is None else one
    return one if one.updated_at >= other.updated_at else other


def newest_told(draft: Draft) -> Progress | None:
    """The newest progress of the attempt that runs, from the push or from the status."""
    pushed, stored = (
        live if fits(draft.status, live) else None for live in (draft.observed.progress, draft.status.live)
    )
    return _newer(pushed, stored)


def note_steps(draft: Draft) -> None:
    """Keep the last step of a running training with its attempt.

    Before anything else looks at the attempt: what was heard last still counts when its pod is gone.
    """
    live = newest_told(draft)
    if live is not None and live.stage == "train" and live.resumed_from_step is not None:
        note_resume(draft, live.resumed_from_step)
        draft.set_stage(last_step=live.step)


def follow(draft: Draft) -> None:
    """Keep the newest progress of the running attempt, drop any other, and look again when it gets stale."""
    live = newest_told(draft)
    draft.set(live=live)
    if live is not None and live.updated_at is not None:
        draft.wake(live.updated_at + timedelta(seconds=_next_threshold_s(silence_s(live, draft.now))))


def silence_s(live: Progress, now: datetime) -> float:
    """Seconds since the last news."""
    return max(0.0, (now - live.updated_at).total_seconds()) if live.updated_at is not None else 0.0


def _next_threshold_s(silent_s: float) -> int:
    """The next silence that is told: each is twice the one before, so that a lost endpoint costs few writes."""
    threshold_s = STALE_S
    while threshold_s <= silent_s:
        threshold_s *= 2
    return threshold_s


def told_silence_s(live: Progress, now: datetime) -> int:
    """The silence to tell about, in seconds: 0, 5, 10, 20, 40 ... minutes."""
    threshold_s = _next_threshold_s(silence_s(live, now))
    return threshold_s // 2 if threshold_s > STALE_S else 0


def write_at(before: Progress | None, news: Progress) -> datetime | None:
    """When news may replace what the status says; None: at once. Times are those of the news, `updated_at`."""
    if before is None or before.updated_at is None or (before.stage, before.attempt) != (news.stage, news.attempt):
        return None
    if before.resumed_from_step is None and news.resumed_from_step is not None:
        return None  # once per attempt: where it resumed must be told however short it lives
    return before.updated_at + timedelta(seconds=QUIET_S if _differs(before, news) else HEARTBEAT_S)


def _differs(before: Progress, news: Progress) -> bool:
    """Whether a person would see the difference."""
    old, new = before.eta_seconds, news.eta_seconds
    eta_changed = (old is None) != (new is None)
    if old is not None and new is not None:
        eta_changed = abs(old - new) > max(60.0, _ETA_CHANGE * old)
    return (
        round(before.percent) != round(news.percent)
        or eta_changed
        or before.phase != news.phase
        or before.validation_loss != news.validation_loss
    )
