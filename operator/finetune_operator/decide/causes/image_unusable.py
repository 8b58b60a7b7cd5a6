"""The image was pulled and has no runner in it."""

from __future__ import annotations

from finetune_operator.decide.causes.base import Cause
from finetune_operator.decide.types import PodState

# The runtime could not start the command; the process never ran. ContainerCannotRun: containerd before 1.5, CRI-O.
_REASONS = frozenset({"StartError", "ContainerCannotRun"})


def _not_started(pod: PodState) -> str | None:
    return f"pod {pod.name}: {pod.reason} {pod.message[:300]}".rstrip() if pod.reason in _REASONS else None


CAUSE = Cause(
    name="ImageUnusable",
    retry="never",
    hint="The image of the GPUPool does not start finetune-runner: the platform team has to name a runner image.",
    sign=_not_started,
    precedence=42,
)
