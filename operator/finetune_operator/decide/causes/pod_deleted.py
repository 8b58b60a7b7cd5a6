"""A pod was deleted by somebody, and did not end by itself within its grace."""

from __future__ import annotations

from finetune_operator.decide.causes.base import Cause
from finetune_operator.decide.types import PodState


def _deleted(pod: PodState) -> str | None:
    if pod.terminating and pod.exit_code in (137, 143) and pod.reason != "OOMKilled":
        return f"pod {pod.name} was deleted (exit code {pod.exit_code})"
    return None


CAUSE = Cause(
    name="PodDeleted",
    retry="soon",
    counts=False,
    hint="Somebody deleted the pod; the next attempt resumes from the last checkpoint.",
    sign=_deleted,
    precedence=28,
)
