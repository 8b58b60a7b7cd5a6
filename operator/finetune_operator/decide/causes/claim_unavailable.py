"""A claim that the pod mounts is missing, or has no volume."""

from __future__ import annotations

import re

from finetune_operator.decide.causes.base import Cause
from finetune_operator.decide.types import PodState

# Kubernetes 1.36, pkg/scheduler/framework/plugins/volumebinding. Words about single nodes are a matter of room.
_WORDS = re.compile(
    r'persistentvolumeclaim "[^"]+" (not found|is being deleted|bound to non-existent)'
    r"|unbound immediate PersistentVolumeClaims"
)


def _without_claim(pod: PodState) -> str | None:
    return f"pod {pod.name}: {pod.unschedulable[:300]}" if _WORDS.search(pod.unschedulable) else None


CAUSE = Cause(
    name="ClaimUnavailable",
    retry="backoff",
    hint="Create the PersistentVolumeClaim in the job's namespace, or wait until it is bound: pvc:// sources name one, "
    "and modelCache.claimName of the GPUPool another.",
    sign=_without_claim,
    precedence=44,
)
