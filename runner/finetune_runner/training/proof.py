"""What is handed on is what was measured: the kept checkpoint, read back and measured again."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import StageError
from finetune_runner.training.best import Selection
from finetune_runner.training.guards import refuse_empty_adapter
from finetune_runner.training.live_progress import say
from finetune_runner.training.reference import TOLERANCE as ELSEWHERE
from finetune_runner.training.saving import saved_adapter
from finetune_runner.training.validating import validation_loss

if TYPE_CHECKING:
    from pathlib import Path

    from finetune_runner.training.checkpoint import Checkpoint, Point
    from finetune_runner.training.session import Session
    from finetune_runner.training.setup import Learner

log = logging.getLogger(__name__)

TOLERANCE = {"cpu": 1e-5, "cuda": 1e-3}
"""Relative, and absolute for a model that already knows the answers; by the kind of device. What an earlier attempt
measured, on another machine or spread out otherwise, is compared as reference.py does."""


def prove_kept(session: Session, learner: Learner) -> Checkpoint:
    """Load the kept checkpoint back from storage and measure it again.

    Where the best one is not what was written, the next best takes its place: what was trained is not lost with a file.

    Raises StageError: STORAGE_UNAVAILABLE when none is what was written, INTERNAL when it is not the whole adapter,
    changes nothing, or has another loss.
    """
    say(session, "checking the kept checkpoint")
    state, folder = session.state, session.folder / "best"
    kept = _read_back(session, folder)
    refuse_empty_adapter(learner.adapter_shapes, folder)
    learner.engine.load_adapter(saved_adapter(learner.adapter_keys, folder))
    again, _ = validation_loss(session, learner)
    recorded = state.best_validation_loss or 0.0
    measured_now = state.best_step > (session.resumed_from or 0)
    tolerance = TOLERANCE[session.device.type] if measured_now else ELSEWHERE[session.precision]
    if not math.isclose(again, recorded, rel_tol=tolerance, abs_tol=tolerance):
        raise StageError(
            ExitCode.INTERNAL,
            f"the kept adapter has validation loss {again:.6g} after reloading, {recorded:.6g} before",
        )
    return kept


def _read_back(session: Session, folder: Path) -> Checkpoint:
    """The best checkpoint that every process can read, on the disk; the state says which it is."""
    state, first = session.state, ""
    for point in _candidates(session):
        found, problem = None, ""
        try:
            found = session.store.fetch(point.step, folder)
        except ValueError as error:
            problem = f"step-{point.step}: {error}"
        (missing,) = session.world.sum([float(found is None)], session.device)
        if found is None or missing:
            first = first or problem or f"step-{point.step}: another process cannot read it"
            log.warning("the kept checkpoint cannot be read back: %s", problem)
            continue
        if first:
            state.skipped_checkpoints.insert(0, f"{first} (step-{point.step} is handed on)")
            state.best_step, state.best_validation_loss = point.step, point.validation_loss
            state.best_measures = point.measures
        return found
    raise StageError(
        ExitCode.STORAGE_UNAVAILABLE,
        f"the kept checkpoint cannot be read back, {first}",
        hint="check that nothing else writes to the run's folder",
    )


def _candidates(session: Session) -> list[Point]:
    """Evaluations whose checkpoint is there, the best first."""
    selection, state = Selection.of(session.context.task.spec), session.state
    stored = {*session.world.from_main(session.store.steps()), state.best_step}
    points = {point.step: point for point in state.history if point.step in stored and 0 < point.step <= state.step}
    ranked = sorted(
        points.values(), key=lambda p: (selection.badness(p.validation_loss, p.measures), p.validation_loss)
    )
    return sorted(ranked, key=lambda point: point.step != state.best_step)
