"""train: the only stage that runs as a gang."""

from __future__ import annotations

from finetune_operator.decide.draft import Draft
from finetune_operator.decide.stages.base import StageKind


def _after(draft: Draft) -> None:
    if draft.status.results.train is None:
        raise RuntimeError("train has no result")


KIND = StageKind(name="train", phase="Training", needs_gpu=True, after=_after, gang=True, stop_grace_s=300)
