"""What runs next: the first stage without a result. Pure."""

from __future__ import annotations

from finetune_api.job.status import StageStatus
from finetune_api.stages import Incumbent, JobIdentity, Stage, StageTask
from finetune_operator.builders.names import job_name
from finetune_operator.decide.attempts import is_active
from finetune_operator.decide.draft import Draft
from finetune_operator.decide.stages import KINDS, ORDER
from finetune_operator.decide.types import StartStage

KEPT_ATTEMPTS = 20


def next_stage(draft: Draft) -> Stage | None:
    """The first stage whose result is missing; None when all are done."""
    for name in ORDER:
        if getattr(draft.status.results, name) is None:
            return name
    return None


def _task(draft: Draft, attempt: StageStatus) -> StageTask:
    job, resolved = draft.observed.job, draft.resolved
    incumbent = Incumbent(version=resolved.incumbent, uri=resolved.incumbent_uri) if resolved.incumbent else None
    return StageTask(
        stage=attempt.name,
        mode=attempt.mode,
        job=JobIdentity(
            namespace=job.metadata.namespace, name=job.metadata.name, uid=job.metadata.uid, run=draft.status.run
        ),
        adapter=job.spec.output.adapter_ref.name,
        attempt=attempt.attempt,
        storage=resolved.storage,
        spec=job.spec,
        gates=resolved.gates,
        plan=draft.status.plan,
        results=draft.status.results,
        incumbent=incumbent,
        warm_start=resolved.warm_start,
        fingerprint=resolved.fingerprint,
        image=resolved.pool_spec.image,
        created_at=draft.status.started_at or draft.now,
    )


def _start(draft: Draft, attempt: StageStatus) -> StartStage:
    kind = KINDS[attempt.name]
    return StartStage(
        job_name=attempt.job_name,
        task=_task(draft, attempt),
        resolved=draft.resolved,
        nodes=draft.observed.job.spec.compute.nodes if kind.gang and attempt.mode == "run" else 1,
        gpus_per_node=draft.resolved.gpus_per_node if kind.needs_gpu and attempt.mode == "run" else 0,
    )


def continue_run(draft: Draft) -> None:
    """Post the Job of a written-ahead attempt, or write the next attempt and announce its Job."""
    spec = draft.observed.job.spec
    if draft.finished or draft.status.resolved is None or spec.suspend or spec.cancel:
        return
    newest = draft.newest
    if newest is not None and is_active(newest):
        if newest.state == "Pending" and newest.job_name not in draft.observed.runs:
            draft.starts.append(_start(draft, newest))
        return
    stage = next_stage(draft)
    if stage is None:
        return
    if newest is not None and newest.retry_at is not None and draft.now < newest.retry_at:
        draft.set(
            reason="Retrying",
            message=f"{newest.name} attempt {newest.attempt} ended with {newest.cause}: {newest.message}"[:1024],
            next_step=newest.hint,
        )
        draft.wake(newest.retry_at)
        return
    attempts = [status for status in draft.status.stages if status.name == stage]
    number = attempts[-1].attempt + 1 if attempts else 1
    recover = bool(attempts) and attempts[-1].cause == "ReportLost" and attempts[-1].mode == "run"
    metadata = draft.observed.job.metadata
    attempt = StageStatus(
        name=stage,
        attempt=number,
        mode="recover" if recover else "run",
        state="Pending",
        job_name=job_name(metadata.name, metadata.uid, draft.status.run, stage, number),
    )
    draft.set(
        stages=[*draft.status.stages, attempt][-KEPT_ATTEMPTS:],
        phase=KINDS[stage].phase,
        reason="Starting",
        message=f"starting {stage}" + (f", attempt {number}" if number > 1 else ""),
        next_step="",
    )
    draft.starts.append(_start(draft, attempt))
