"""What became of the newest attempt: pods in, status of the attempt out. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import takewhile

from finetune_api.job.status import StageStatus
from finetune_api.stages import Stage, StageReport, StageResults, TrainPlan
from finetune_operator.decide.causes import registry
from finetune_operator.decide.causes.base import Cause
from finetune_operator.decide.diagnosis import Diagnosis, diagnose_failure, diagnose_waiting, success_report
from finetune_operator.decide.draft import FINDINGS_LIMIT, Draft
from finetune_operator.decide.pools import shortage
from finetune_operator.decide.queueing import TAKEN_WITHIN_S, explain_queue
from finetune_operator.decide.stages import KINDS
from finetune_operator.decide.steps import resumed_text
from finetune_operator.decide.types import PodState, StageRun, StopStage

ACTIVE_STATES = frozenset({"Pending", "Queued", "Running"})
START_DEADLINE_S = 600
"""How long a pod may wait for its image or its configuration before the run fails."""
SLOW_START_S = 60
"""How long a bound pod may be without a container before a person is told."""
GANG_DEADLINE_S = 300
"""How long a gang without a queue may hold part of its GPUs before they are released."""
BACKOFF_FIRST_S = 10
BACKOFF_LARGEST_S = 600
MAXIMUM_ATTEMPTS = 20
"""Bound on attempts of one stage however they ended: nothing may loop for ever and spend money."""


def is_active(attempt: StageStatus | None) -> bool:
    """Whether the attempt has not ended."""
    return attempt is not None and attempt.state in ACTIVE_STATES


def pod_seconds(run: StageRun | None, attempt: StageStatus, now: datetime) -> float:
    """Seconds this attempt's pods have run: queued and suspended time is not in it."""
    if attempt.started_at is None:
        return attempt.active_seconds
    ends = [pod.finished_at for pod in run.pods if pod.finished_at] if run else []
    end = attempt.finished_at or (max(ends) if ends and run and run.state in ("Succeeded", "Failed") else now)
    return attempt.active_seconds + max(0.0, (end - attempt.started_at).total_seconds())


def account(draft: Draft, run: StageRun | None) -> None:
    """Add the finished attempt to the run's active seconds and cost."""
    attempt = draft.newest
    if attempt is None:
        return
    seconds = pod_seconds(run, attempt, draft.now)
    draft.set(active_seconds=draft.status.active_seconds + seconds)
    price = draft.resolved.pool_spec.price
    kind = KINDS[attempt.name]
    if price is not None and kind.needs_gpu:
        gpus = draft.resolved.gpus_per_node * (draft.observed.job.spec.compute.nodes if kind.gang else 1)
        draft.set(cost=round((draft.status.cost or 0.0) + seconds / 3600 * gpus * price.gpu_per_hour, 4))


def _delay_s(draft: Draft, cause: Cause, in_a_row: int) -> float:
    if cause.retry == "soon":
        return 0.0
    seconds: float = min(BACKOFF_LARGEST_S, BACKOFF_FIRST_S * 2 ** (in_a_row - 1))
    # Jitter must not depend on chance, or two looks at the same world would decide differently.
    seed = hashlib.sha256(f"{draft.uid}/{draft.status.run}/{in_a_row}".encode()).digest()[0]
    return seconds * (0.75 + 0.5 * seed / 255)


def _ended(draft: Draft, run: StageRun | None) -> datetime:
    ends = [pod.finished_at for pod in run.pods if pod.finished_at] if run else []
    if ends:
        return max(ends)
    return (run.finished_at if run and run.finished_at else None) or draft.now


def _gentler(draft: Draft, stage: Stage, diagnosis: Diagnosis) -> tuple[TrainPlan, str] | None:
    """A plan under which the stage needs less, and what changed; None when none is left."""
    plan, spec, cause = draft.status.plan, draft.observed.job.spec, diagnosis.cause
    if plan is None:
        return None
    if stage == "train":
        return cause.adjust(plan, spec, diagnosis.evidence) if cause.adjust is not None else None
    if stage not in ("baseline", "evaluate") or cause.adjust_judging is None:
        return None
    return cause.adjust_judging(plan, spec)


def _held(draft: Draft, stage: Stage, cause: Cause) -> str:
    """What the spec rules out of a training's gentler plans; empty when nothing."""
    plan = draft.status.plan
    if plan is None or stage != "train" or cause.held is None:
        return ""
    return cause.held(plan, draft.observed.job.spec)


def fail_attempt(draft: Draft, diagnosis: Diagnosis, run: StageRun | None) -> None:
    """Record a failed attempt and decide between the next attempt and the end of the run."""
    attempt = draft.newest
    if attempt is None:
        raise RuntimeError("there is no attempt to fail")
    cause = diagnosis.cause
    if cause.adjust is not None and attempt.name != "train" and diagnosis.hint == cause.hint:
        diagnosis = replace(diagnosis, hint=cause.hint_without_training)
    draft.set_stage(
        state="Failed",
        finished_at=_ended(draft, run),
        exit_code=diagnosis.exit_code,
        cause=cause.name,
        message=diagnosis.message[:1024],
        hint=diagnosis.hint[:512],
        evidence=diagnosis.evidence[:1024],
        counts_against_retries=cause.counts,
    )
    account(draft, run)
    if diagnosis.report is not None and diagnosis.report.findings:
        _take_findings(draft, diagnosis.report)

    ours = [s for s in draft.status.stages if s.name == attempt.name and s.state == "Failed"]
    counted = sum(1 for s in ours if s.counts_against_retries)
    retries = draft.observed.job.spec.compute.max_retries
    final = cause.retry == "never" or counted > retries or attempt.attempt >= MAXIMUM_ATTEMPTS
    if not final and cause.adjust is not None:
        gentler = _gentler(draft, attempt.name, diagnosis)
        if gentler is None:
            final = True
            if held := _held(draft, attempt.name, cause):
                diagnosis = replace(diagnosis, hint=f"{held} {diagnosis.hint}")
                draft.set_stage(hint=diagnosis.hint[:512])
        else:
            draft.set(plan=gentler[0])
            draft.set_stage(message=f"{diagnosis.message} (next attempt: {gentler[1]})"[:1024])
    if final:
        tried = f" after {attempt.attempt} attempts" if attempt.attempt > 1 else ""
        draft.finish("Failed", cause.name, f"{attempt.name} failed{tried}: {diagnosis.message}", diagnosis.hint)
        return
    in_a_row = sum(1 for _ in takewhile(lambda stage: stage.cause == cause.name, reversed(ours)))
    retry_at = draft.now + timedelta(seconds=_delay_s(draft, cause, in_a_row))
    draft.set_stage(retry_at=retry_at)


def succeed_attempt(draft: Draft, report: StageReport, run: StageRun) -> None:
    """Take the result over and let the stage say what follows from it."""
    attempt = draft.newest
    result = getattr(report.result, report.stage, None)
    if attempt is None or result is None or report.stage != attempt.name:
        lose_report(draft, run)
        return
    draft.set_stage(state="Succeeded", finished_at=_ended(draft, run), exit_code=0, message=report.message)
    account(draft, run)
    results = {name: getattr(draft.status.results, name) for name in StageResults.model_fields}
    draft.set(results=StageResults(**(results | {report.stage: result})))
    _take_findings(draft, report)
    KINDS[attempt.name].after(draft)


def _take_findings(draft: Draft, report: StageReport) -> None:
    """Warnings first, of each kind those of earlier stages first; prepare begins anew."""
    earlier = [] if report.stage == "prepare" else draft.status.findings
    found = [*earlier, *(finding for finding in report.findings if finding not in earlier)]
    draft.set(findings=sorted(found, key=lambda finding: finding.severity == "info")[:FINDINGS_LIMIT])


def lose_report(draft: Draft, run: StageRun) -> None:
    """A stage ended well without a readable report: a small attempt re-emits it from storage."""
    attempt = draft.newest
    if attempt is None:
        raise RuntimeError("there is no attempt")
    cause = registry()["ReportLost"]
    evidence = next((pod.message[-300:] for pod in run.pods if pod.message), "no termination message")
    if attempt.mode == "recover":
        cause_text = "the report could not be recovered from storage"
        fail_attempt(draft, Diagnosis(cause, cause_text, evidence, cause.hint, 0), run)
        return
    draft.set_stage(
        state="Failed",
        finished_at=_ended(draft, run),
        exit_code=0,
        cause=cause.name,
        message="the stage ended well but its report was lost; it is read again from storage",
        evidence=evidence,
        counts_against_retries=False,
        retry_at=draft.now,
    )
    account(draft, run)


def _waits(draft: Draft, run: StageRun) -> None:
    attempt = draft.newest
    waiting = diagnose_waiting(run)
    # A Job may have stood in a queue before: only the time in which its pods could start counts.
    since = run.started_at or run.created_at or draft.now
    age_s = (draft.now - since).total_seconds()
    if waiting is None:
        slow = next((pod for pod in run.pods if pod.waiting_reason == "ContainerCreating"), None)
        if slow is not None and age_s >= SLOW_START_S:
            _starts_slowly(draft, slow)
            return
        if slow is not None:
            draft.wake(since + timedelta(seconds=SLOW_START_S))
        # What `continue_run` has said still holds: no write for other words.
        if draft.status.reason != "Starting":
            name = attempt.name if attempt else "the stage"
            draft.set(reason="Starting", message=f"waiting for the pods of {name} to start", next_step="")
        return
    if waiting.cause.name == "Unschedulable":
        waiting = _with_shortage(draft, waiting)
    draft.set(reason=waiting.cause.name, message=waiting.message[:1024], next_step=waiting.hint[:512])
    draft.set_stage(cause=waiting.cause.name, message=waiting.message[:1024], hint=waiting.hint[:512])
    if waiting.cause.name == "Unschedulable":
        gang_is_partial = len(run.pods) > 1 and any(pod.phase != "Pending" or not pod.unschedulable for pod in run.pods)
        if gang_is_partial and not draft.observed.job.spec.compute.queue:
            if age_s >= GANG_DEADLINE_S:
                fail_attempt(draft, waiting, run)
                draft.stops.append(StopStage(run.job_name, run.uid))
            else:
                draft.wake(since + timedelta(seconds=GANG_DEADLINE_S))
        return
    if age_s >= START_DEADLINE_S:
        fail_attempt(draft, waiting, run)
        draft.stops.append(StopStage(run.job_name, run.uid))
    else:
        draft.wake(since + timedelta(seconds=START_DEADLINE_S))


def _starts_slowly(draft: Draft, pod: PodState) -> None:
    """The kubelet tells only in Events why it cannot make a pod's volumes, and tries for ever."""
    draft.set(
        reason="StartsSlowly",
        message=f"pod {pod.name} has been in ContainerCreating for more than {SLOW_START_S} s",
        next_step=f"kubectl describe pod {pod.name} says why: often a Secret or a claim named in the spec does not "
        "exist, or the image is large. It goes on by itself.",
    )


def _with_shortage(draft: Draft, waiting: Diagnosis) -> Diagnosis:
    """Say what the pool knows better than the scheduler: which nodes there are, and how many GPUs they have."""
    attempt, resolved = draft.newest, draft.resolved
    on_pool = attempt is not None and attempt.mode == "run" and KINDS[attempt.name].needs_gpu
    if not on_pool and resolved.pool_spec.gpus_per_node:
        return waiting  # stages on the CPU run on any node
    pool = next((pool for pool in draft.observed.pools if pool.metadata.name == resolved.pool), None)
    found = shortage(pool, resolved.gpus_per_node if on_pool else 0) if pool is not None else None
    if found is None:
        return waiting
    return replace(waiting, message=f"{found.message} ({waiting.message})", hint=found.hint)


def _waits_in_queue(draft: Draft, run: StageRun) -> None:
    """Kueue holds the Job back, or has taken its GPUs away again: the same Job goes on later."""
    attempt = draft.newest
    if attempt is None:
        return
    alive = any(pod.phase == "Running" for pod in run.pods)
    if attempt.started_at is not None and not alive:
        draft.set_stage(
            active_seconds=_seconds_before_preemption(run, attempt, draft.now),
            started_at=None,
            preemptions=attempt.preemptions + 1,
        )
    wanted = (draft.observed.job.spec.compute.queue or "") if KINDS[attempt.name].needs_gpu else ""
    wait = explain_queue(run, wanted, draft.observed, draft.now, stopping=alive)
    overdue_at = (run.created_at or draft.now) + timedelta(seconds=TAKEN_WITHIN_S)
    if run.queue is None and draft.now < overdue_at:
        draft.wake(overdue_at)
    draft.set_stage(state="Queued", cause="", message=wait.message[:1024], hint=wait.hint[:512])
    draft.set(phase="Queued", reason=wait.reason, message=wait.message[:1024], next_step=wait.hint[:512])


def _seconds_before_preemption(run: StageRun, attempt: StageStatus, now: datetime) -> float:
    """Pods that a queue took back have run until they were gone: their end may be seen, or only their absence."""
    if attempt.started_at is None:
        return attempt.active_seconds
    end = max((pod.finished_at for pod in run.pods if pod.finished_at), default=now)
    return attempt.active_seconds + max(0.0, (end - attempt.started_at).total_seconds())


def _started_anew(run: StageRun, attempt: StageStatus, pods_started_at: datetime) -> bool:
    """Whether Job and pods are newer than the attempt's start. A Job's startTime may be a second after its pods'."""
    if run.started_at is None or attempt.started_at is None:
        return False
    return min(run.started_at, pods_started_at) > attempt.started_at


def _runs(draft: Draft, run: StageRun) -> None:
    attempt = draft.newest
    if attempt is None:
        return
    kind = KINDS[attempt.name]
    started = min((pod.started_at for pod in run.pods if pod.started_at), default=draft.now)
    if run.queue is not None and _started_anew(run, attempt, started):
        # Taken back and given again while nobody looked: Kueue knows how long it had been admitted.
        active = max(attempt.active_seconds, run.queue.past_admitted_s)
        draft.set_stage(active_seconds=active, started_at=started, preemptions=attempt.preemptions + 1)
    if attempt.state != "Running":
        draft.set_stage(state="Running", started_at=attempt.started_at or started, cause="", message="", hint="")
    resumed = resumed_text(attempt)
    message = f"{attempt.name} is running" + (f", {resumed}" if resumed else "")
    draft.set(phase=kind.phase, reason=kind.phase, message=message, next_step="")


def absorb(draft: Draft) -> None:
    """Bring the newest attempt up to what is observed. Does nothing when no attempt is active."""
    attempt = draft.newest
    if attempt is None or not is_active(attempt):
        return
    run = draft.observed.runs.get(attempt.job_name)
    if run is None:
        # Written ahead and not created yet, or gone: `continue_run` posts it again in the first case.
        spec = draft.observed.job.spec
        if attempt.state in ("Running", "Queued") and not (spec.suspend or spec.cancel):
            cause = registry()["JobDeleted"]
            fail_attempt(draft, Diagnosis(cause, f"Job {attempt.job_name} disappeared", "", cause.hint), None)
        return
    if run.state == "Terminating":
        draft.set(reason="Stopping", message=f"waiting for the pods of {attempt.name} to end")
    elif run.state == "Queued":
        _waits_in_queue(draft, run)
    elif run.state == "Pending":
        draft.set(phase=KINDS[attempt.name].phase)
        if attempt.state == "Queued":
            draft.set_stage(state="Pending", message="", hint="")
        _waits(draft, run)
    elif run.state == "Running":
        _runs(draft, run)
    elif run.state == "Succeeded":
        _runs(draft, run)
        report = success_report(run, draft.uid, draft.status.run)
        if report is None:
            lose_report(draft, run)
        else:
            succeed_attempt(draft, report, run)
    else:
        started = min((pod.started_at for pod in run.pods if pod.started_at), default=None)
        if attempt.started_at is None and started is not None:
            draft.set_stage(started_at=started)
        fail_attempt(draft, diagnose_failure(run, draft.uid, draft.status.run), run)
