"""Where training resumed, and how many steps that cost. Pure."""

from __future__ import annotations

from finetune_api.job.status import StageStatus
from finetune_api.wording import counted
from finetune_operator.decide.draft import Draft


def note_resume(draft: Draft, step: int) -> None:
    """The newest attempt resumed at this step. Steps beyond it that were done before are lost.

    A Job that Kueue preempts starts again within its attempt, and may then resume a second time.
    """
    attempt = draft.newest
    if attempt is None or attempt.resumed_from_step == step:
        return
    done = [entry.last_step for entry in draft.status.stages if entry.name == "train" and entry.last_step is not None]
    lost = attempt.lost_steps
    if done:
        lost = (lost or 0) + max(0, max(done) - step)
    draft.set_stage(resumed_from_step=step, lost_steps=lost)


def resumed_text(attempt: StageStatus) -> str:
    """For people: `resumed from step 150 (12 steps lost)`; empty for an attempt that had nothing to resume."""
    if not attempt.resumed_from_step and not attempt.lost_steps:
        return ""
    text = f"resumed from step {attempt.resumed_from_step}"
    return text if attempt.lost_steps is None else f"{text} ({counted(attempt.lost_steps, 'step')} lost)"
