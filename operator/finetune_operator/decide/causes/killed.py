"""A pod was killed from outside before it could report."""

from __future__ import annotations

from finetune_operator.decide.causes.base import Cause
from finetune_operator.decide.types import PodState


def _killed(pod: PodState) -> str | None:
    if pod.exit_code in (137, 143) and pod.reason != "OOMKilled":
        return f"pod {pod.name} was killed (exit code {pod.exit_code})"
    return None


CAUSE = Cause(
    name="Killed",
    retry="soon",
    hint="Something on the node killed the process; the next attempt resumes from the last checkpoint.",
    sign=_killed,
    precedence=30,
)
