"""The pod's scratch volume is full."""

from __future__ import annotations

from finetune_operator.decide.causes.base import Cause
from finetune_operator.decide.types import PodState


def _evicted_for_disk(pod: PodState) -> str | None:
    if pod.reason == "Evicted" and ("ephemeral" in pod.message or "emptyDir" in pod.message):
        return f"pod {pod.name}: {pod.message[:300]}"
    return None


CAUSE = Cause(
    name="DiskFull",
    retry="never",
    hint="Ask the platform team for a larger scratchSize in the GPUPool.",
    sign=_evicted_for_disk,
    precedence=15,
)
