"""Measures the model on validation: the loss of all rows, and the metrics of those that are answered."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import StageError
from finetune_runner.training.stopping import goes_on

if TYPE_CHECKING:
    from finetune_runner.training.objectives.base import Sums
    from finetune_runner.training.session import Session
    from finetune_runner.training.setup import Learner


def measure(session: Session, learner: Learner) -> tuple[float, dict[str, float]]:
    """Loss and measures of all validation rows, and the metrics of those that are answered."""
    began = time.monotonic()
    loss, measures = validation_loss(session, learner)
    with session.stopwatch.measure("validation"):
        lockstep = learner.engine.lockstep
        answers = learner.engine.call(
            lambda model: learner.judge.answer(model, lambda: goes_on(session), lockstep=lockstep)
        )
        measures |= learner.judge.metrics(answers, session.device)
    session.state.validation_s = time.monotonic() - began
    return loss, measures


def validation_loss(session: Session, learner: Learner) -> tuple[float, dict[str, float]]:
    """Mean loss over all validation rows (sft: by token) and the objective's measures; each process has a share.

    Raises StageError (INVALID_DATA) when there is nothing to measure.
    """
    learner.model.eval()
    with session.stopwatch.measure("validation"):
        local: Sums = learner.engine.call(
            lambda model: learner.objective.validation(model, session.world, lambda _: goes_on(session))
        )
        loss, count, *measures = session.world.sum([local.loss, local.count, *local.measures.values()], session.device)
    if count == 0:
        raise StageError(
            ExitCode.INVALID_DATA,
            "data.validation: no row has a labelled token within training.maxLength",
            hint="raise training.maxLength or data.validation.fraction",
        )
    return loss / count, {name: value / count for name, value in zip(local.measures, measures, strict=True)}
