"""What a training says of itself while it goes on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from finetune_api.stages import Progress
from finetune_runner.training.remaining import remaining_s

if TYPE_CHECKING:
    from finetune_runner.training.session import Session


def say(session: Session, phase: str) -> None:
    """Live progress; the main process speaks for all."""
    if not session.world.main:
        return
    state, plan = session.state, session.plan
    step, total = state.step, session.horizon.expected(state.step)
    newest = state.history[-1] if state.history else None
    session.context.progress(
        Progress(
            stage="train",
            attempt=session.context.task.attempt,
            phase=phase,
            step=step,
            total_steps=total,
            percent=min(100.0, round(100 * step / total, 1)),
            eta_seconds=remaining_s(step, total, plan.eval_steps, session.pace.step_s, state.validation_s),
            seconds_per_step=session.pace.step_s,
            tokens_per_second=session.pace.newest_tokens_per_second,
            loss=_finite(state.recent_losses[-1]) if state.recent_losses else None,
            validation_loss=None if newest is None else _finite(newest.validation_loss),
            validation_metrics={} if newest is None else dict(newest.measures),
            resumed_from_step=session.resumed_from,
            updated_at=session.context.clock(),
        )
    )


def _finite(value: float) -> float | None:
    """A loss that can be told: JSON knows no NaN."""
    return value if math.isfinite(value) else None
