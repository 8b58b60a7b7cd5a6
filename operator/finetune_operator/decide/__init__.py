"""The pure core: what to do next, given what was observed and the time."""

from __future__ import annotations

from datetime import datetime

from finetune_api.base import whole_seconds
from finetune_api.job.status import FineTuneJobStatus
from finetune_operator.decide.attempts import absorb
from finetune_operator.decide.complete import complete, follow_version
from finetune_operator.decide.conditions import job_conditions
from finetune_operator.decide.draft import Draft
from finetune_operator.decide.lifecycle import accept, begin_run, cancel, enforce_deadline, remove_children, suspend
from finetune_operator.decide.live import follow, note_steps
from finetune_operator.decide.lost_pods import remove_lost_pods
from finetune_operator.decide.present import progress_text, transition_events
from finetune_operator.decide.standing import standing
from finetune_operator.decide.start import continue_run
from finetune_operator.decide.types import Decision, Observed

__all__ = ["decide"]


def decide(observed: Observed, now: datetime) -> Decision:
    """The next status and what to start, stop and create. Deciding twice on the same world gives the same answer."""
    before = observed.job.status or FineTuneJobStatus()
    draft = Draft(observed=observed, now=whole_seconds(now), status=before)
    if observed.job.metadata.deletion_timestamp is not None:
        # Children go with their owner; versions stay because they have none.
        return Decision(status=before)
    begin_run(draft)
    for step in (
        note_steps,
        cancel,
        accept,
        absorb,
        remove_lost_pods,
        suspend,
        enforce_deadline,
        continue_run,
        complete,
        follow_version,
        follow,
        remove_children,
    ):
        step(draft)
    draft.set(progress=progress_text(draft.status, draft.now))
    generation = observed.job.metadata.generation
    conditions = job_conditions(draft.status, before.conditions, generation, draft.now, standing(draft))
    draft.set(conditions=conditions)
    return Decision(
        status=draft.status,
        adapter=draft.adapter,
        starts=tuple(draft.starts),
        stops=tuple(draft.stops),
        force_deletes=tuple(draft.force_deletes),
        version=draft.version,
        events=tuple(transition_events(before, draft.status)),
        wake_at=draft.wake_at,
    )
