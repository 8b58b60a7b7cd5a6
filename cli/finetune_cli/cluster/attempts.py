"""Which attempt's log is meant, and what is left of a log whose pod is gone. Pure."""

from __future__ import annotations

from typing import Any

from finetune_api.finetunejob import FineTuneJob
from finetune_api.job.status import StageStatus
from finetune_cli.errors import CliError, CliExit
from finetune_operator.views import controller_uid, job_view, pod_view, stage_run

JSON = dict[str, Any]
CONTAINER = "stage"


def choose_attempt(job: FineTuneJob, stage: str | None, number: int | None, *, previous: bool = False) -> StageStatus:
    """The attempt that `--stage`, `--attempt` and `--previous` name; the newest when they say nothing.

    Raises CliError naming the attempts there are.
    """
    attempts = job.status.stages if job.status is not None else []
    of_stage = [attempt for attempt in attempts if stage in (None, attempt.name)]
    if not of_stage:
        there = ", ".join(f"{attempt.name} {attempt.attempt}" for attempt in attempts)
        phase = job.status.phase if job.status is not None else "Pending"
        reason = f": {job.status.message}" if job.status is not None and job.status.message else ""
        raise CliError(
            f"{job.metadata.name} has not started {stage or 'any stage'} ({phase}{reason})",
            f"Attempts so far: {there or 'none'}.",
            CliExit.FAILED,
        )
    last = of_stage[-1]
    of_stage = [attempt for attempt in of_stage if attempt.name == last.name]
    if previous:
        number = last.attempt - 1
    if number is None:
        return last
    for attempt in of_stage:
        if attempt.attempt == number:
            return attempt
    there = ", ".join(str(attempt.attempt) for attempt in of_stage)
    raise CliError(f"{last.name} has no attempt {number}", f"Attempts of {last.name}: {there}.")


def choose_pod(job: JSON, pods: list[JSON], rank: int) -> JSON | None:
    """The pod of this rank among those that the Job controls; the newest when there are several."""
    uid = job["metadata"]["uid"]
    ours = [pod for pod in pods if controller_uid(pod) == uid and pod_view(pod).state.index == rank]
    return max(ours, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")), default=None)


def why_waiting(job: JSON, pods: list[JSON]) -> str:
    """Why no container of a Job runs, in the operator's own words."""
    from finetune_operator.decide.diagnosis import diagnose_waiting

    uid = job["metadata"]["uid"]
    run = stage_run(job_view(job), [pod_view(pod) for pod in pods if controller_uid(pod) == uid])
    if run.state == "Queued":
        return "Queued: the Job waits for quota in its queue; `status` says what it waits for"
    waiting = diagnose_waiting(run)
    if waiting is not None:
        return f"{waiting.cause.name}: {waiting.message}\n  {waiting.hint}"
    if not run.pods:
        return "the Job has no pod yet"
    reasons = {pod.waiting_reason for pod in run.pods if pod.waiting_reason}
    return "its pod is starting" + (f" ({', '.join(sorted(reasons))})" if reasons else "")


def what_is_left(job: FineTuneJob, attempt: StageStatus) -> list[str]:
    """Lines about an attempt whose pod is gone: where its log went, and everything that is still known of it."""
    status = job.status
    run = status.run if status is not None else 0
    lines = [
        f"the log of {attempt.name} attempt {attempt.attempt} went with its pod: "
        "Kubernetes keeps a log as long as the pod",
        f"  state     {attempt.state}" + (f", exit code {attempt.exit_code}" if attempt.exit_code is not None else ""),
    ]
    told = (
        ("cause", attempt.cause),
        ("message", attempt.message),
        ("evidence", attempt.evidence),
        ("hint", attempt.hint),
    )
    lines += [f"  {name:<9} {value}" for name, value in told if value]
    if status is not None and status.resolved is not None:
        root = status.resolved.storage.uri.rstrip("/")
        adapter = job.spec.output.adapter_ref.name
        uri = f"{root}/{job.metadata.namespace}/{adapter}/runs/{job.metadata.uid}/{run}"
        lines.append(f"  report    {uri}/{attempt.name}/report.json (of the stage's last attempt that could write one)")
        if status.results.evaluate is not None and status.results.evaluate.report_uri:
            lines.append(f"  page      {status.results.evaluate.report_uri}")
    if status is not None and status.completed_at is not None:
        lines.append(
            f"  pods go   {job.spec.ttl_seconds_after_finished} s after the end of the run "
            "(spec.ttlSecondsAfterFinished); a cluster with log collection still has the text"
        )
    return lines
