"""train: the only stage that runs as a gang."""

from __future__ import annotations

from finetune_operator.decide.draft import Draft
from finetune_operator.decide.stages.base import StageKind
from finetune_operator.decide.steps import note_resume
from finetune_operator.planner.forecast import with_measurements, with_stage_measurement


def _after(draft: Draft) -> None:
    result = draft.status.results.train
    if result is None:
        raise RuntimeError("train has no result")
    note_resume(draft, result.resumed_from_step)
    status = draft.status
    measured = with_measurements(status.forecast, status.plan, result.peak_memory_bytes, result.duration_seconds)
    peak, seconds = result.peak_memory_bytes, result.duration_seconds
    draft.set(forecast=with_stage_measurement(measured, status.plan, "train", peak, seconds))


KIND = StageKind(name="train", phase="Training", needs_gpu=True, after=_after, gang=True, stop_grace_s=300)
