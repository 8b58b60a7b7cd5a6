"""Training that diverges ends, with the step, the numbers and the fields to change."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import StageError
from finetune_runner.training.rates import warmup_steps
from finetune_runner.training.schedule import EXPLODED_STEPS, DivergenceWatch, no_number

if TYPE_CHECKING:
    import torch

    from finetune_runner.training.session import Session

SHOWN_LOSSES = 5


class DivergenceGuard:
    """Takes every loss of a run, from where its state left off."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._watch = DivergenceWatch(
            warmup_steps=warmup_steps(session.training, session.plan.total_steps),
            lowest=session.state.lowest_train_loss,
            steps_above=session.state.steps_above,
            recent=deque(session.state.recent_losses[-EXPLODED_STEPS:], maxlen=EXPLODED_STEPS),
        )

    def observe(self, step: int, loss: float) -> None:
        """Take a training loss. Raises StageError (TRAINING_DIVERGED)."""
        wrong = self._watch.observe(step, loss)
        self._session.state.lowest_train_loss = self._watch.lowest
        self._session.state.steps_above = self._watch.steps_above
        if wrong:
            raise diverged(self._session, wrong)

    def observe_validation(self, step: int, loss: float) -> None:
        """Take a validation loss. Raises StageError (TRAINING_DIVERGED) when it is no number."""
        if not math.isfinite(loss):
            raise diverged(self._session, no_number("validation", step, loss))


def refuse_no_numbers(session: Session, adapter: Mapping[str, torch.Tensor]) -> None:
    """Weights that are no numbers, as a gradient leaves them that is none, are not saved: nothing can resume from them.

    Raises StageError (TRAINING_DIVERGED) naming the step.
    """
    wrong = [name for name, tensor in adapter.items() if not bool(tensor.isfinite().all())]
    if wrong:
        found = f"{len(wrong)} of {len(adapter)} adapter matrices hold values that are no numbers"
        raise diverged(session, f"{found} after step {session.state.step}")


def diverged(session: Session, wrong: str) -> StageError:
    """The error of a training that diverged, with what is worth keeping."""
    state, training = session.state, session.training
    recent = ", ".join(f"{value:.3g}" for value in state.recent_losses[-SHOWN_LOSSES:])
    kept = f"the best checkpoint so far is step {state.best_step}" if state.best_step else "nothing is worth keeping"
    return StageError(
        ExitCode.TRAINING_DIVERGED,
        wrong,
        hint=f"lower training.learningRate (now {training.learning_rate:g}) or raise training.warmupRatio; {kept}",
        evidence=f"losses of the last steps: {recent}",
    )
