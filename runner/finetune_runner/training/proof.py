"""What is handed on is what was measured: the kept checkpoint, read back and measured again."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import StageError
from finetune_runner.training.guards import refuse_empty_adapter
from finetune_runner.training.live_progress import say
from finetune_runner.training.reference import TOLERANCE as ELSEWHERE
from finetune_runner.training.saving import saved_adapter
from finetune_runner.training.validating import validation_loss

if TYPE_CHECKING:
    from finetune_runner.training.checkpoint import Checkpoint
    from finetune_runner.training.session import Session
    from finetune_runner.training.setup import Learner

TOLERANCE = {"cpu": 1e-5, "cuda": 1e-3}
"""Relative, and absolute for a model that already knows the answers; by the kind of device. What an earlier attempt
measured, on another machine or spread out otherwise, is compared as reference.py does."""


def prove_kept(session: Session, learner: Learner) -> Checkpoint:
    """Load the kept checkpoint back from storage and measure it again.

    Raises StageError: STORAGE_UNAVAILABLE when it is not what was written, INTERNAL when it is not the whole adapter,
    changes nothing, or has another loss.
    """
    say(session, "checking the kept checkpoint")
    state, folder = session.state, session.folder / "best"
    try:
        kept = session.store.fetch(state.best_step, folder)
    except ValueError as error:
        raise StageError(
            ExitCode.STORAGE_UNAVAILABLE,
            f"the kept checkpoint of step {state.best_step} cannot be read back: {error}",
            hint="check that nothing else writes to the run's folder",
        ) from error
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
