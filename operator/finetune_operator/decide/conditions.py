"""Conditions, computed from the rest of the status; only their transition times remember anything. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from finetune_api.common import Condition
from finetune_api.job.status import FINISHED_PHASES, FineTuneJobStatus
from finetune_operator.decide.standing import Standing

Wanted = tuple[str, str, str, str]
"""type, status, reason, message."""


def with_transition_times(
    wanted: Sequence[Wanted], previous: Sequence[Condition], generation: int, now: datetime
) -> list[Condition]:
    """Conditions whose transition time is kept while their status stays."""
    before = {condition.type: condition for condition in previous}
    result = []
    for type_, status, reason, message in wanted:
        old = before.get(type_)
        since = old.last_transition_time if old is not None and old.status == status else now
        result.append(
            Condition.model_validate(
                {
                    "type": type_,
                    "status": status,
                    "reason": reason,
                    "message": message[:1024],
                    "observedGeneration": generation,
                    "lastTransitionTime": since,
                }
            )
        )
    return result


def _truth(value: bool) -> str:
    return "True" if value else "False"


def job_conditions(
    status: FineTuneJobStatus, previous: Sequence[Condition], generation: int, now: datetime, release: Standing
) -> list[Condition]:
    """All conditions of a FineTuneJob: ours, and Ready, Reconciling, Stalled in kstatus' sense.

    Those three are about the run, not about its release (docs/gitops.md): Ready when what the spec asks for has been
    done, be it a finished run, a suspension or a cancellation; otherwise exactly one of the other two is true.
    """
    phase, reason, message = status.phase, status.reason or status.phase, status.message
    finished = phase in FINISHED_PHASES
    refused = status.resolved is None and bool(status.reason)
    failed = phase in ("Failed", "Cancelled")
    stalled = phase == "Failed" or (refused and not finished)
    done = phase in ("Succeeded", "Suspended", "Cancelled")
    wanted: list[Wanted] = [
        (
            "Accepted",
            _truth(status.resolved is not None),
            "Accepted" if status.resolved else reason,
            "" if status.resolved else message,
        ),
        ("Planned", _truth(status.plan is not None), "Planned" if status.plan else "NotYet", ""),
        ("Released", _truth(release.released), release.reason or phase, release.message),
        ("Suspended", _truth(phase == "Suspended"), "BySpec" if phase == "Suspended" else "NotSuspended", ""),
        ("Complete", _truth(phase == "Succeeded"), reason, message if finished else ""),
        ("Failed", _truth(failed), reason, message if failed else ""),
        ("Ready", _truth(done), reason, message),
        ("Reconciling", _truth(not done and not stalled), reason, message),
        ("Stalled", _truth(stalled), reason, message if stalled else ""),
    ]
    return with_transition_times(wanted, previous, generation, now)
