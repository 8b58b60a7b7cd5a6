"""A pod was evicted: node drained, or the kubelet short of a resource."""

from __future__ import annotations

from finetune_operator.decide.causes.base import Cause
from finetune_operator.decide.types import PodState


def _evicted(pod: PodState) -> str | None:
    if pod.disruption or pod.evicted:
        return f"pod {pod.name}: {pod.evicted[:300] or pod.disruption}".rstrip()
    return None


CAUSE = Cause(
    name="Evicted",
    retry="soon",
    counts=False,
    hint="The next attempt resumes from the last checkpoint.",
    sign=_evicted,
    precedence=25,
)
