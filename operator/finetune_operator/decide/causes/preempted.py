"""A pod had to make room for a more important one."""

from __future__ import annotations

from finetune_operator.decide.causes.base import Cause
from finetune_operator.decide.types import PodState


def _preempted(pod: PodState) -> str | None:
    return f"pod {pod.name}: {pod.disruption}" if pod.disruption == "PreemptionByScheduler" else None


CAUSE = Cause(
    name="Preempted",
    retry="soon",
    counts=False,
    hint="The next attempt resumes from the last checkpoint.",
    sign=_preempted,
    precedence=20,
)
