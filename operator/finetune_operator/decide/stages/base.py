"""What a stage is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from finetune_api.job.status import Phase
from finetune_api.stages import Stage
from finetune_operator.decide.draft import Draft


@dataclass(frozen=True)
class StageKind:
    """One stage: its phase, what its pods need, and what follows from its result."""

    name: Stage
    phase: Phase
    needs_gpu: bool
    after: Callable[[Draft], None]
    """Called once when the result is in `draft.status.results`; may plan, end the run, or create the version."""
    gang: bool = False
    """Whether it runs on compute.nodes pods instead of one."""
    stop_grace_s: int = 30
    """Time a pod gets to save its work when it is stopped."""
