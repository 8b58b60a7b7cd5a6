"""A training that is asked to stop: when it costs nothing, and what is said of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import StageError

if TYPE_CHECKING:
    from finetune_runner.training.session import Session

SLOW_EVALUATION_S = 60.0
"""An evaluation that took longer might not end within a pod's grace period: its step is saved first."""


def slow(session: Session) -> bool:
    """Whether the last evaluation might not have ended within a pod's grace period."""
    return (session.state.validation_s or 0.0) > SLOW_EVALUATION_S


def goes_on(session: Session) -> None:
    """Between two batches of something other than a step. Raises StageError when a stop costs nothing.

    That is so before the first step, and when the step is saved and much is left to do. Ranks of one pod need not
    agree: whoever hears it first ends the others. Those of another pod would be told as failed, so with several nodes
    what is under way goes on.
    """
    session.watchdog.alive()
    step = session.state.step
    saved = session.saved is not None and session.saved.step == step
    if (step == 0 or (saved and slow(session))) and session.plan.nodes == 1 and session.context.stop.is_set():
        raise asked_to_stop(session)


def asked_to_stop(session: Session) -> StageError:
    """The cause of an attempt that ends with its step saved, or before its first one."""
    if session.state.step == 0:
        return StageError(
            ExitCode.INTERRUPTED,
            "training was asked to stop before its first step",
            hint="the next attempt starts from the beginning",
        )
    return StageError(
        ExitCode.INTERRUPTED,
        f"training was asked to stop and saved a checkpoint at step {session.state.step}",
        hint="the next attempt resumes there",
    )
