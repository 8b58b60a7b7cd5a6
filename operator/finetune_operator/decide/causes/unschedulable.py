"""No node has room for the pod."""

from __future__ import annotations

from finetune_operator.decide.causes.base import Cause
from finetune_operator.decide.types import PodState


def _unschedulable(pod: PodState) -> str | None:
    return f"pod {pod.name}: {pod.unschedulable[:300]}" if pod.unschedulable else None


CAUSE = Cause(
    name="Unschedulable",
    retry="backoff",
    counts=False,
    hint="Wait until there is room, ask for fewer GPUs (compute.gpusPerNode, compute.nodes), or use another pool; a "
    "pod's memory and processors are cpuPod and gpuPod of the GPUPool.",
    sign=_unschedulable,
    precedence=45,
)
