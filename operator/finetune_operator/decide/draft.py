"""A decision being made: the one mutable value inside `decide`, never seen outside."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from finetune_api.adapter import Adapter
from finetune_api.adapterversion import AdapterVersion
from finetune_api.job.status import FINISHED_PHASES, FineTuneJobStatus, Phase, Resolved, StageStatus
from finetune_operator.decide.types import ForceDelete, Observed, StartStage, StopStage

FINDINGS_LIMIT = 30
"""As many as the status holds."""


@dataclass
class Draft:
    """What is known, what the time is, and the decision so far."""

    observed: Observed
    now: datetime
    status: FineTuneJobStatus
    adapter: Adapter | None = None
    version: AdapterVersion | None = None
    starts: list[StartStage] = field(default_factory=list)
    stops: list[StopStage] = field(default_factory=list)
    force_deletes: list[ForceDelete] = field(default_factory=list)
    wake_at: datetime | None = None

    @property
    def finished(self) -> bool:
        """Whether the run has ended."""
        return self.status.phase in FINISHED_PHASES

    @property
    def resolved(self) -> Resolved:
        """What Accepted froze; only asked for after acceptance."""
        if self.status.resolved is None:
            raise RuntimeError("the run has not been accepted")
        return self.status.resolved

    @property
    def uid(self) -> str:
        """Uid of the FineTuneJob."""
        return self.observed.job.metadata.uid

    def set(self, **changes: Any) -> None:
        """Change fields of the status."""
        self.status = self.status.model_copy(update=changes)

    def set_resolved(self, **changes: Any) -> None:
        """Change fields of status.resolved."""
        self.set(resolved=self.resolved.model_copy(update=changes))

    def set_stage(self, **changes: Any) -> None:
        """Change fields of the newest attempt."""
        newest = self.status.stages[-1].model_copy(update=changes)
        self.set(stages=[*self.status.stages[:-1], newest])

    @property
    def newest(self) -> StageStatus | None:
        """The newest attempt of the run."""
        return self.status.stages[-1] if self.status.stages else None

    def wake(self, at: datetime) -> None:
        """Be called again no later than this."""
        self.wake_at = at if self.wake_at is None else min(self.wake_at, at)

    def wake_in(self, seconds: float) -> None:
        """Be called again no later than in so many seconds."""
        self.wake(self.now + timedelta(seconds=seconds))

    def finish(self, phase: Phase, reason: str, message: str, next_step: str = "") -> None:
        """End the run."""
        self.set(
            phase=phase,
            reason=reason,
            message=message[:1024],
            next_step=next_step[:512],
            completed_at=self.now,
        )
