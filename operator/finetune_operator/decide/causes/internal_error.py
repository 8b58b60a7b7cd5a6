"""The process ended in a way no other cause explains."""

from __future__ import annotations

from finetune_operator.decide.causes.base import Cause
from finetune_operator.decide.types import PodState


def _exit_code(pod: PodState) -> str | None:
    if pod.exit_code in (None, 0):
        return None
    reason = f" ({pod.reason})" if pod.reason and pod.reason != "Error" else ""
    tail = f": {pod.message.strip()[-300:]}" if pod.message.strip() else ""
    return f"pod {pod.name} ended with exit code {pod.exit_code}{reason}{tail}"


CAUSE = Cause(
    name="InternalError",
    retry="backoff",
    hint="Read the pod's log; if it is not your data or code, report a bug with it.",
    sign=_exit_code,
    precedence=99,
)
