"""The container cannot be made, usually because a Secret is missing."""

from __future__ import annotations

from finetune_operator.decide.causes.base import Cause
from finetune_operator.decide.types import PodState

_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})


def _waiting(pod: PodState) -> str | None:
    if pod.waiting_reason in _REASONS:
        return f"pod {pod.name}: {pod.waiting_reason} {pod.waiting_message[:300]}".rstrip()
    return None


CAUSE = Cause(
    name="ContainerConfig",
    retry="never",
    hint="Create the Secret or service account named in the evidence in the job's namespace.",
    sign=_waiting,
    precedence=41,
)
