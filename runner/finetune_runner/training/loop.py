"""The loop over optimiser steps: what happens before each and after it."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from finetune_runner.training.divergence import SHOWN_LOSSES, DivergenceGuard
from finetune_runner.training.evaluating import Evaluations
from finetune_runner.training.guards import FirstStep
from finetune_runner.training.live_progress import say
from finetune_runner.training.result import last_tenth
from finetune_runner.training.saving import save
from finetune_runner.training.stopping import asked_to_stop, slow

if TYPE_CHECKING:
    from finetune_runner.training.session import Session
    from finetune_runner.training.setup import Learner

PROGRESS_EVERY_S = 1.0
MOST_LOSSES = 1000
"""Kept for the mean training loss since the last evaluation; they are part of every checkpoint's manifest."""


class Loop:
    """Steps from where the session's state left off. Read `run` first."""

    def __init__(self, session: Session, learner: Learner) -> None:
        self._session = session
        self._learner = learner
        self._divergence = DivergenceGuard(session)
        self._evaluations = Evaluations(session, learner, self._divergence)
        self._first_step = FirstStep()
        self._interrupted = False
        self._rate = 0.0
        self._step_started = 0.0
        self._said_at = -math.inf

    def run(self) -> None:
        """Train until something ends it, which the state then says.

        Raises StageError: INTERRUPTED after a checkpoint was saved, TRAINING_DIVERGED with the step.
        """
        session, state = self._session, self._session.state
        if state.initial_validation_loss is None:
            self._evaluations.before_first_step()
        if state.pending_evaluation:
            budget_s = session.plan.time_budget_seconds
            over_budget = budget_s is not None and state.elapsed_s >= budget_s
            self._evaluations.after(state.step, over_budget=over_budget)
            if state.ended_by:
                return
        steps = range(state.step + 1, session.horizon.most + 1)
        self._learner.trainer.train(steps, self.before_step, self.after_step)
        if self._interrupted:
            raise asked_to_stop(session)

    def before_step(self, step: int) -> None:
        """Random numbers, and what the objective has to know of the step."""
        import torch

        learner, world = self._learner, self._session.world
        # Random numbers (dropout) are a function of seed, step and rank: nothing to save, nothing to restore.
        torch.manual_seed((self._session.training.seed * 1_000_003 + step - 1) * 4_099 + world.rank)
        self._rate = float(learner.engine.optimizer.param_groups[0]["lr"])
        self._step_started = time.monotonic()
        if step == 1:
            self._first_step.remember(learner.engine.adapter())
        examples = learner.stream[step - 1].tolist()
        learner.engine.call(lambda model: learner.objective.begin_step(model, examples, world))

    def after_step(self, step: int) -> bool:
        """Everything that happens between two optimiser steps. Returns whether training ends here."""
        session, state, plan = self._session, self._session.state, self._session.plan
        with session.stopwatch.measure("compute"):
            local_loss = float(self._learner.trainer.take_step_loss())
        took_s = time.monotonic() - self._step_started
        over_budget = plan.time_budget_seconds is not None and state.elapsed_s + took_s >= plan.time_budget_seconds
        # All ranks must take the same way, and their clocks differ.
        loss, stop, budget, slow_somewhere = session.world.sum(
            [local_loss, float(session.context.stop.is_set()), float(over_budget), float(slow(session))],
            session.device,
        )
        self._note(step, loss, took_s)
        session.watchdog.beat()
        self._divergence.observe(step, loss)
        if step == 1:
            self._first_step.refuse_unmoved(self._learner.engine.adapter())

        last = step == session.horizon.end
        due = bool(last or budget or step % plan.eval_steps == 0 or session.horizon.decides_at(step))
        if stop and not last:
            self._interrupted = True
            state.pending_evaluation = due
            save(session, self._learner)
            return True
        if due:
            if slow_somewhere:
                state.pending_evaluation = True
                save(session, self._learner)
            self._evaluations.after(step, over_budget=bool(budget))
        elif step % session.training.checkpoints.effective_every_steps == 0:
            save(session, self._learner)
        if time.monotonic() - self._said_at >= PROGRESS_EVERY_S:
            self._said_at = time.monotonic()
            say(session, "training")
        return bool(state.ended_by)

    def _note(self, step: int, loss: float, took_s: float) -> None:
        session, state, objective = self._session, self._session.state, self._learner.objective
        state.step = step
        state.elapsed_s += took_s
        examples = self._learner.stream[step - 1].tolist()
        session.pace.note(
            took_s,
            tokens=sum(objective.lengths[index] for index in examples),
            labelled=sum(objective.counts[index] for index in examples),
        )
        kept = max(SHOWN_LOSSES, last_tenth(session), min(session.plan.eval_steps, MOST_LOSSES))
        state.recent_losses = [*state.recent_losses, loss][-kept:]
        session.tracking.log(
            step, {"train/loss": loss, "train/learning_rate": self._rate, "train/step_seconds": took_s}
        )
