"""Which Events belong to a FineTuneJob, and how they are told. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from finetune_api.finetunejob import FineTuneJob
from finetune_operator.builders.names import job_name
from finetune_operator.views import parse_time

JSON = dict[str, Any]
_BEGINNING = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, order=True)
class Happening:
    """One Event, ready to be printed."""

    at: datetime
    type: str
    reason: str
    about: str
    note: str
    count: int = 1


def child_prefixes(job: FineTuneJob) -> tuple[str, ...]:
    """How the names of the children of every run begin: their hash of uid and run makes them nobody else's.

    Events outlive the objects they are about, so owner uids cannot be asked for.
    """
    # One more than there are: while Events are followed another run may begin.
    runs = range(1, (job.status.run if job.status is not None else 0) + 2)
    names = (job_name(job.metadata.name, job.metadata.uid, run, "prepare", 1) for run in runs)
    return tuple(name.removesuffix("prepare-1") for name in names)


class Belonging:
    """Tells the Events of one FineTuneJob, its Jobs, pods, queue entries and its version from all others."""

    def __init__(self, job: FineTuneJob) -> None:
        """`job` as it is now."""
        self._uid = job.metadata.uid
        self._prefixes = child_prefixes(job)
        self._version = job.status.version.name if job.status is not None and job.status.version is not None else ""

    def __contains__(self, event: JSON) -> bool:
        """Whether an Event is about it."""
        about = event.get("regarding") or {}
        kind, name = about.get("kind"), str(about.get("name", ""))
        if kind == "FineTuneJob":
            return bool(about.get("uid") == self._uid)
        if kind in ("Job", "Pod", "Service"):
            return name.startswith(self._prefixes)
        if kind == "Workload":
            # Kueue's, called after the Job.
            return name.startswith(tuple(f"job-{prefix}" for prefix in self._prefixes))
        return kind == "AdapterVersion" and name == self._version != ""


def happening(event: JSON) -> Happening:
    """An Event of events.k8s.io/v1, whichever of its generations of fields were filled in."""
    series = event.get("series") or {}
    times = (
        series.get("lastObservedTime"),
        event.get("deprecatedLastTimestamp"),
        event.get("eventTime"),
        event.get("deprecatedFirstTimestamp"),
        (event.get("metadata") or {}).get("creationTimestamp"),
    )
    about = event.get("regarding") or {}
    return Happening(
        at=next((moment for text in times if (moment := parse_time(text)) is not None), _BEGINNING),
        type=str(event.get("type", "")),
        reason=str(event.get("reason", "")),
        about=f"{about.get('kind', '')}/{about.get('name', '')}",
        note=" ".join(str(event.get("note", "")).split()),
        count=int(series.get("count") or event.get("deprecatedCount") or 1),
    )
