"""What a person can do now: commands to type, from what a job's status says. Pure."""

from __future__ import annotations

from collections.abc import Callable

from finetune_api.adapterversion import AdapterVersion
from finetune_api.finetunejob import FineTuneJob
from finetune_api.job.status import FINISHED_PHASES, FineTuneJobStatus, StageStatus

Command = Callable[..., str]
"""From the words of a command (`approve`, `triage@v1`) to what is typed, with the flags that lead to the same place."""


def _not_seen(job: FineTuneJob) -> list[str]:
    del job
    return ["the operator has not looked at this yet; if that stays so: kubectl get pods -n finetune-system"]


def failed_attempt(status: FineTuneJobStatus) -> StageStatus | None:
    """The newest attempt that failed."""
    return next((attempt for attempt in reversed(status.stages) if attempt.state == "Failed"), None)


def _log(name: str, attempt: StageStatus | None, command: Command) -> list[str]:
    if attempt is None:
        return []
    return [f"{command('logs', name, '--stage', attempt.name, '--attempt', str(attempt.attempt))}    the log"]


def _ended_badly(name: str, status: FineTuneJobStatus, command: Command) -> list[str]:
    hint = [status.next_step] if status.next_step and status.phase != "Cancelled" else []
    log = _log(name, failed_attempt(status), command) if status.phase == "Failed" else []
    return [*hint, *log, f"{command('retry', name)}    another run of the same spec; or edit the spec and apply it"]


def _published(job: FineTuneJob, version: AdapterVersion | None, command: Command) -> list[str]:
    status = job.status
    if status is None or status.version is None:
        return [status.next_step] if status is not None and status.next_step else []
    adapter = job.spec.output.adapter_ref.name
    label = f"{adapter}@v{status.version.number}"
    state = version.status if version is not None else None
    phase = state.phase if state is not None else "GateFailed" if status.verdict == "Failed" else "PendingApproval"
    versions = f"{command('versions', adapter)}    versions, and what each channel serves"
    if phase == "GateFailed":
        return ["change data or settings and apply again: that is the next run", versions]
    if phase == "Rejected" and state is not None:
        return [f"{state.message}; change data or settings and apply again", versions]
    if phase == "Approved":
        serving = state.channels if state is not None else []
        served = f"served by channel {', '.join(serving)}" if serving else "approved; no channel serves it"
        return [served, versions]
    doubt = ["look at the report first: a gate is inconclusive"] if status.verdict == "Inconclusive" else []
    return [
        *doubt,
        f'{command("approve", label)} --reason "..."    somebody other than the author',
        f'{command("reject", label)} --reason "..."',
    ]


def next_steps(job: FineTuneJob, version: AdapterVersion | None, command: Command) -> list[str]:
    """Lines to act on in a cluster, most useful first; never empty."""
    status, name = job.status, job.metadata.name
    if job.metadata.deletion_timestamp is not None:
        return ["it is being deleted; its pods end, its versions stay"]
    if status is None or status.observed_generation < job.metadata.generation:
        return _not_seen(job)
    if status.phase in ("Failed", "Cancelled"):
        return _ended_badly(name, status, command)
    if status.phase in FINISHED_PHASES:
        return _published(job, version, command)
    if status.phase == "Suspended":
        return [f"{command('resume', name)}    goes on from the last checkpoint"]
    if status.reason == "Retrying":
        hint = [status.next_step] if status.next_step else []
        return ["it is tried again by itself", *hint, *_log(name, failed_attempt(status), command)]
    if status.next_step:
        # Something is in the way: what the operator says comes before watching.
        return [status.next_step]
    return [f"{command('watch', name)}    as it goes", f"{command('logs', name)} -f    what the pods say"]
