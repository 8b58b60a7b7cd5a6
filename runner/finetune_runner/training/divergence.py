"""Training that diverges ends, with the step, the numbers and the fields to change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import StageError
from finetune_runner.training.rates import warmup_steps
from finetune_runner.training.schedule import DivergenceWatch

if TYPE_CHECKING:
    from finetune_runner.training.session import Session

SHOWN_LOSSES = 5


class DivergenceGuard:
    """Takes every loss of a run, from where its state left off."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._watch = DivergenceWatch(
            warmup_steps=warmup_steps(session.training, session.plan.total_steps),
            lowest=session.state.lowest_train_loss,
        )

    def observe(self, step: int, loss: float) -> None:
        """Take a loss. Raises StageError (TRAINING_DIVERGED)."""
        wrong = self._watch.observe(step, loss)
        state, training = self._session.state, self._session.training
        state.lowest_train_loss = self._watch.lowest
        if not wrong:
            return
        recent = ", ".join(f"{value:.3g}" for value in state.recent_losses[-SHOWN_LOSSES:])
        raise StageError(
            ExitCode.TRAINING_DIVERGED,
            wrong,
            hint=f"lower training.learningRate (now {training.learning_rate:g}) or raise training.warmupRatio; "
            f"the best checkpoint so far is step {state.best_step}",
            evidence=f"losses of the last steps: {recent}",
        )
