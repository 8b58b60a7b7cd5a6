"""The pod's scratch volume is full: the kubelet evicts a pod that uses more than it may."""

from __future__ import annotations

import re

from finetune_operator.decide.causes.base import Cause
from finetune_operator.decide.types import PodState

# Kubernetes 1.36, pkg/kubelet/eviction/helpers.go. A node that is itself low on disk evicts too, and another may do.
_LIMITS = re.compile(
    r"Usage of EmptyDir volume .* exceeds the limit|exceeded its local ephemeral storage limit"
    r"|Pod ephemeral local storage usage exceeds the total limit"
)


def _evicted_for_disk(pod: PodState) -> str | None:
    return f"pod {pod.name}: {pod.evicted[:300].strip()}" if _LIMITS.search(pod.evicted) else None


CAUSE = Cause(
    name="DiskFull",
    retry="never",
    hint="Ask the platform team for a larger scratchSize in the GPUPool.",
    sign=_evicted_for_disk,
    precedence=15,
)
