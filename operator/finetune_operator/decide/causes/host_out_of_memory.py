"""The kernel killed the container for its memory limit."""

from __future__ import annotations

from finetune_operator.decide.causes.base import Cause
from finetune_operator.decide.types import PodState


def _oom_killed(pod: PodState) -> str | None:
    return f"pod {pod.name}: OOMKilled, exit code {pod.exit_code}" if pod.reason == "OOMKilled" else None


CAUSE = Cause(
    name="HostOutOfMemory",
    retry="never",
    hint="Ask the platform team for more memory per pod in the GPUPool (cpuPod or gpuPod), or use less data at once.",
    sign=_oom_killed,
    precedence=10,
)
