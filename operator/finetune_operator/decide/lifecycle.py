"""Beginning, stopping and ending a run. Pure."""

from __future__ import annotations

from datetime import timedelta

from finetune_api.adapter import Adapter, AdapterSpec
from finetune_api.common import ObjectMeta, duration_s
from finetune_api.job.status import FineTuneJobStatus, RunSummary
from finetune_operator.builders.names import job_name
from finetune_operator.decide.attempts import account, is_active, pod_seconds
from finetune_operator.decide.causes import registry
from finetune_operator.decide.draft import Draft
from finetune_operator.decide.hashing import spec_hash
from finetune_operator.decide.resolve import Refusal, resolve
from finetune_operator.decide.stages import KINDS
from finetune_operator.decide.types import StopStage

KEPT_RUNS = 5


def _summary(status: FineTuneJobStatus) -> RunSummary:
    return RunSummary(
        run=status.run,
        phase=status.phase,
        reason=status.reason,
        version=status.version.name if status.version else "",
        completed_at=status.completed_at,
    )


def begin_run(draft: Draft) -> None:
    """Start run 1, or run N+1 when a finished job was edited or a retry of it was asked for."""
    job = draft.observed.job
    digest = spec_hash(job.spec)
    status = draft.status
    if status.run == 0:
        draft.set(run=1, spec_hash=digest, phase="Pending", reason="", message="")
    elif draft.finished and not job.spec.cancel and _asks_for_another_run(draft, digest):
        history = [*status.history, _summary(status)][-KEPT_RUNS:]
        draft.status = FineTuneJobStatus(
            run=status.run + 1, spec_hash=digest, history=history, conditions=status.conditions
        )
    elif not draft.finished and status.resolved is None and digest != status.spec_hash:
        # Edited while still waiting to be accepted: nothing has started, so it is the same run.
        draft.set(spec_hash=digest)
    # Whatever was asked for while a run was open is answered by that run: only a later wish starts the next.
    draft.set(observed_generation=job.metadata.generation, handled_retry=job.retry)


def _asks_for_another_run(draft: Draft, digest: str) -> bool:
    status = draft.status
    if not status.spec_hash or status.phase == "Cancelled":
        return True
    if draft.observed.job.retry not in ("", status.handled_retry):
        return True
    # An upgrade may add a default and so change the digest of specs nobody touched: only an edit starts a run.
    edited = draft.observed.job.metadata.generation != status.observed_generation
    return edited and digest != status.spec_hash


def accept(draft: Draft) -> None:
    """Freeze pool, storage and gates, or say why not."""
    if draft.status.resolved is not None or draft.finished:
        return
    outcome = resolve(draft.observed)
    if isinstance(outcome, Refusal):
        if outcome.final:
            draft.finish("Failed", outcome.reason, outcome.message, outcome.next_step)
        else:
            draft.set(phase="Pending", reason=outcome.reason, message=outcome.message, next_step=outcome.next_step)
            draft.wake_in(300)
        return
    draft.set(
        resolved=outcome,
        started_at=draft.now,
        phase="Pending",
        reason="Accepted",
        message=f"accepted on pool {outcome.pool}",
        next_step="",
    )
    if outcome.pool_spec.price is not None:
        draft.set(cost=0.0)
    if draft.observed.adapter is None:
        draft.adapter = new_adapter(draft)


def new_adapter(draft: Draft) -> Adapter:
    """The Adapter a job names and nobody made: it pins the storage the job was accepted with."""
    job = draft.observed.job
    return Adapter(
        metadata=ObjectMeta(name=job.spec.output.adapter_ref.name, namespace=job.metadata.namespace),
        spec=AdapterSpec(storage=draft.resolved.storage),
    )


def _stop_active(draft: Draft) -> bool:
    """Ask the active attempt to stop. True when nothing runs any more."""
    attempt = draft.newest
    if attempt is None or not is_active(attempt):
        return True
    run = draft.observed.runs.get(attempt.job_name)
    if run is None or run.state in ("Succeeded", "Failed"):
        draft.set_stage(state="Stopped", finished_at=draft.now)
        account(draft, run)
        return True
    if run.state != "Terminating":
        draft.stops.append(StopStage(run.job_name, run.uid, KINDS[attempt.name].stop_grace_s))
    return False


def cancel(draft: Draft) -> None:
    """End the run for good when spec.cancel says so. A finished run stays what it is."""
    if not draft.observed.job.spec.cancel or draft.finished:
        return
    if _stop_active(draft):
        draft.finish(
            "Cancelled", "Cancelled", "cancelled by spec.cancel", "Set spec.cancel: false to start another run."
        )
    else:
        draft.set(reason="Cancelling", message="waiting for the pods to end", next_step="")


def suspend(draft: Draft) -> None:
    """Stop the pods while spec.suspend says so; a checkpoint is saved on the way out."""
    if not draft.observed.job.spec.suspend or draft.finished or draft.status.resolved is None:
        return
    if _stop_active(draft):
        draft.set(
            phase="Suspended",
            reason="Suspended",
            message="suspended by spec.suspend",
            next_step="Set spec.suspend: false to resume.",
        )
    else:
        draft.set(reason="Suspending", message="waiting for the pods to save a checkpoint and end", next_step="")


def enforce_deadline(draft: Draft) -> None:
    """End the run when its pods have run longer than compute.maxDuration."""
    attempt = draft.newest
    if draft.finished or attempt is None or not is_active(attempt) or attempt.started_at is None:
        return
    run = draft.observed.runs.get(attempt.job_name)
    limit_s = duration_s(draft.observed.job.spec.compute.max_duration)
    used_s = draft.status.active_seconds + pod_seconds(run, attempt, draft.now)
    if used_s < limit_s:
        draft.wake_in(limit_s - used_s)
        return
    cause = registry()["DeadlineExceeded"]
    message = f"pods have run for {used_s:.0f} s, compute.maxDuration is {draft.observed.job.spec.compute.max_duration}"
    if run is not None and run.state != "Terminating":
        draft.stops.append(StopStage(run.job_name, run.uid, KINDS[attempt.name].stop_grace_s))
    draft.set_stage(state="Failed", finished_at=draft.now, cause=cause.name, message=message, hint=cause.hint)
    account(draft, run)
    draft.finish("Failed", cause.name, message, cause.hint)


def remove_children(draft: Draft) -> None:
    """Remove the children of earlier runs at once and those of a finished run after the TTL. Never the job itself."""
    job = draft.observed.job
    current = {stage.job_name for stage in draft.status.stages}
    ttl_s = job.spec.ttl_seconds_after_finished
    expired = False
    if draft.finished and draft.status.completed_at is not None:
        expires = draft.status.completed_at + timedelta(seconds=ttl_s)
        expired = draft.now >= expires
        if not expired and draft.observed.runs:
            draft.wake(expires)
    already = {stop.job_name for stop in draft.stops}
    for run in draft.observed.runs.values():
        superseded = run.job_name not in current and not _is_of_current_run(draft, run.job_name)
        over = expired or superseded
        # A run that ended while a child was still active (cancel, deadline) must not leave it running.
        orphaned = draft.finished and run.state in ("Queued", "Pending", "Running")
        if (over or orphaned) and run.state != "Terminating" and run.job_name not in already:
            draft.stops.append(StopStage(run.job_name, run.uid, 0 if over else 30))


def _is_of_current_run(draft: Draft, name: str) -> bool:
    """Attempts beyond the last 20 drop out of the status but still belong to the run."""
    job = draft.observed.job
    some = job_name(job.metadata.name, job.metadata.uid, draft.status.run, "prepare", 1)
    return name.startswith(some.removesuffix("prepare-1"))
