"""Evaluations during training: which step is the best, and whether training ends here."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from finetune_runner.training.best import Selection
from finetune_runner.training.checkpoint import Point
from finetune_runner.training.guards import refuse_no_number
from finetune_runner.training.horizon import still_falls
from finetune_runner.training.live_progress import say
from finetune_runner.training.saving import save
from finetune_runner.training.schedule import EarlyStop
from finetune_runner.training.validating import measure

if TYPE_CHECKING:
    from finetune_runner.training.divergence import DivergenceGuard
    from finetune_runner.training.session import Session
    from finetune_runner.training.setup import Learner


class Evaluations:
    """The evaluations of one training, from where its state left off. Each ends with a checkpoint."""

    def __init__(self, session: Session, learner: Learner, divergence: DivergenceGuard) -> None:
        self._session = session
        self._learner = learner
        self._divergence = divergence
        self._selection = Selection.of(session.context.task.spec)
        rule, state = session.training.early_stopping, session.state
        self._minimum_delta = rule.minimum_delta
        self._early_stop = EarlyStop(
            patience=rule.patience,
            minimum_delta=rule.minimum_delta,
            best=math.inf if state.early_best is None else state.early_best,
            loss=math.inf if state.early_loss is None else state.early_loss,
            without_improvement=state.without_improvement,
        )

    def before_first_step(self) -> None:
        """The untuned model: where the curve starts. It is no candidate for the best. Raises as `refuse_no_number`."""
        say(self._session, "validating the untuned model")
        began = time.monotonic()
        loss, measures = measure(self._session, self._learner)
        refuse_no_number(loss)
        self._session.state.elapsed_s += time.monotonic() - began
        self._session.state.initial_validation_loss = loss
        self._note(Point(0, loss, measures=measures))
        self._wait_is_over(loss, measures)

    def after(self, step: int, *, over_budget: bool) -> None:
        """Evaluate, choose the best step, decide whether training ends, save."""
        session, state = self._session, self._session.state
        say(session, "validating")
        began = time.monotonic()
        loss, measures = measure(session, self._learner)
        self._divergence.observe_validation(step, loss)
        since = step - state.history[-1].step if state.history else step
        train_loss = statistics.fmean(state.recent_losses[-since:])
        self._note(Point(step, loss, train_loss, measures))
        if self._selection.better(loss, measures, state.best_validation_loss, state.best_measures):
            state.best_step, state.best_validation_loss, state.best_measures = step, loss, measures
        wait_is_over = self._wait_is_over(loss, measures)
        losses = [point.validation_loss for point in state.history]
        session.horizon.observe(step, falls=still_falls(losses, self._minimum_delta))
        state.end = session.horizon.end
        if step == session.horizon.end:
            state.ended_by = "plateau" if session.horizon.at_plateau else "completed"
        elif wait_is_over:
            state.ended_by = "earlyStopping"
        elif over_budget:
            state.ended_by = "budget"
        state.elapsed_s += time.monotonic() - began
        state.pending_evaluation = False
        save(session, self._learner)

    def _wait_is_over(self, loss: float, measures: Mapping[str, float]) -> bool:
        """Count evaluations without improvement, in the state too; returns whether they are too many."""
        state = self._session.state
        wait_is_over = self._early_stop.observe(self._selection.badness(loss, measures), loss)
        state.early_best, state.early_loss = self._early_stop.best, self._early_stop.loss
        state.without_improvement = self._early_stop.without_improvement
        return wait_is_over

    def _note(self, point: Point) -> None:
        self._session.state.history.append(point)
        measured = {f"validation/{name}": value for name, value in point.measures.items()}
        self._session.tracking.log(point.step, {"validation/loss": point.validation_loss, **measured})
