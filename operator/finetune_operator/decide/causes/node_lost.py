"""The node under a pod went away."""

from __future__ import annotations

from finetune_operator.decide.causes.base import Cause
from finetune_operator.decide.types import PodState


def _node_lost(pod: PodState) -> str | None:
    if pod.disruption in ("DeletionByTaintManager", "DeletionByPodGC") or pod.reason == "NodeLost":
        return f"pod {pod.name}: {pod.disruption or pod.reason}"
    return None


CAUSE = Cause(
    name="NodeLost",
    retry="soon",
    counts=False,
    hint="The next attempt resumes from the last checkpoint on another node.",
    sign=_node_lost,
    precedence=21,
)
