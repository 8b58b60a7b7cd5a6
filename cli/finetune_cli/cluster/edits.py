"""Small edits of a job's wish: suspend, resume, cancel, and another run."""

from __future__ import annotations

from datetime import datetime

from finetune_api.finetunejob import RETRY_ANNOTATION, FineTuneJob
from finetune_api.job.status import FINISHED_PHASES
from finetune_cli.cluster.api import JSON
from finetune_cli.cluster.connection import Connection
from finetune_cli.cluster.objects import fetch_job, read_as
from finetune_cli.cluster.resources import FINETUNE_JOBS
from finetune_cli.cluster.waiting import is_over
from finetune_cli.errors import CliError

_SYNCED_BY = {
    "argocd.argoproj.io/tracking-id": "Argo CD",
    "argocd.argoproj.io/instance": "Argo CD",
    "kustomize.toolkit.fluxcd.io/name": "Flux",
    "helm.toolkit.fluxcd.io/name": "Flux",
}


def synced_by(wire: JSON) -> str:
    """The GitOps tool whose marks an object carries; empty when it carries none."""
    metadata = wire.get("metadata", {})
    marks = {**(metadata.get("labels") or {}), **(metadata.get("annotations") or {})}
    return next((tool for mark, tool in _SYNCED_BY.items() if mark in marks), "")


def _note_on_sync(wire: JSON, field: str) -> str:
    tool = synced_by(wire)
    return f"\n{tool} manages this job: where Git says otherwise about {field} it may set it back" if tool else ""


def _phase(job: FineTuneJob) -> str:
    return job.status.phase if job.status is not None else "Pending"


def _edit(connection: Connection, name: str, body: JSON) -> FineTuneJob:
    with connection.asking("patch", FINETUNE_JOBS, name):
        return read_as(FineTuneJob, connection.api.patch(FINETUNE_JOBS, connection.namespace, name, body))


def _refuse_finished(connection: Connection, job: FineTuneJob, verb: str) -> None:
    if is_over(job):
        name = job.metadata.name
        raise CliError(
            f"{name} is {_phase(job)} already: there is nothing to {verb}",
            f"`{connection.command('retry', name)}` starts another run.",
        )


def suspend_job(connection: Connection, name: str) -> str:
    """Ask the pods to save a checkpoint and end; returns what to tell. Raises CliError when the run has ended."""
    job, wire = fetch_job(connection, name)
    _refuse_finished(connection, job, "suspend")
    resume = f"`{connection.command('resume', name)}` goes on"
    if job.spec.suspend:
        return f"{name} is suspended already; {resume}"
    _edit(connection, name, {"spec": {"suspend": True}})
    return f"{name}: its pods save a checkpoint and end; {resume}{_note_on_sync(wire, 'spec.suspend')}"


def resume_job(connection: Connection, name: str) -> str:
    """Let a suspended job go on; returns what to tell. Raises CliError when it is not suspended."""
    job, wire = fetch_job(connection, name)
    if not job.spec.suspend:
        raise CliError(
            f"{name} is not suspended, it is {_phase(job)}",
            "In a queue only quota lets it go on."
            if _phase(job) == "Queued"
            else f"`{connection.command('status', name)}` says what it waits for.",
        )
    _edit(connection, name, {"spec": {"suspend": False}})
    how = "goes on from its last checkpoint" if job.status is not None and job.status.stages else "starts"
    if job.status is not None and job.status.phase in FINISHED_PHASES:
        how = f"has ended as {job.status.phase}; the next run will not wait"
    return f"{name} {how}{_note_on_sync(wire, 'spec.suspend')}"


def cancel_job(connection: Connection, name: str) -> str:
    """End the run for good; returns what to tell. Raises CliError when it has ended."""
    job, wire = fetch_job(connection, name)
    _refuse_finished(connection, job, "cancel")
    _edit(connection, name, {"spec": {"cancel": True}})
    told = f"{name}: cancelled; its pods end, nothing is published"
    return f"{told}. `{connection.command('retry', name)}` starts another run{_note_on_sync(wire, 'spec.cancel')}"


def retry_job(connection: Connection, name: str, now: datetime) -> str:
    """Ask for another run of the same spec; returns what to tell. Raises CliError while a run is open."""
    job, wire = fetch_job(connection, name)
    if not is_over(job):
        suspended = _phase(job) == "Suspended"
        raise CliError(
            f"{name} is {_phase(job)}: its run has not ended",
            f"`{connection.command('resume', name)}` goes on."
            if suspended
            else "Failed stages are tried again by themselves (compute.maxRetries); "
            f"`{connection.command('cancel', name)}` ends the run first.",
        )
    body: JSON = {"metadata": {"annotations": {RETRY_ANNOTATION: f"{now:%Y-%m-%dT%H:%M:%S.%fZ}"}}}
    note = ""
    if job.spec.cancel:
        body["spec"] = {"cancel": False}
        note = _note_on_sync(wire, "spec.cancel")
    _edit(connection, name, body)
    number = job.status.run + 1 if job.status is not None else 1
    told = f"{name}: run {number} is asked for; `{connection.command('watch', name)}` shows it"
    if job.spec.suspend:
        told += f"\nit is suspended: `{connection.command('resume', name)}` lets it start"
    if _phase(job) == "Succeeded":
        told += "\nif model, data and settings are what they were it ends as Unchanged, without training"
    return told + note
