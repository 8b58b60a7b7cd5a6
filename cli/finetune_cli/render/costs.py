"""What a run has cost and may cost, from what its status knows. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from finetune_api.finetunejob import FineTuneJob
from finetune_api.job.status import FINISHED_PHASES, FineTuneJobStatus, StageStatus
from finetune_api.stages import Progress, Stage
from finetune_cli.render.stages import duration, newest_attempt, stage_seconds
from finetune_operator.decide.attempts import is_active
from finetune_operator.decide.stages import KINDS

GPU_STAGES: tuple[Stage, ...] = ("baseline", "train", "evaluate")


@dataclass(frozen=True)
class Costs:
    """Money in `currency`; None where it cannot be known."""

    currency: str
    price_per_gpu_hour: float
    spent: float
    """Of ended attempts, and of the running one until now."""
    forecast: tuple[float, float] | None = None
    """Lowest and highest likely cost of the whole run, with what is in `basis`."""
    limit: float | None = None
    basis: list[str] = field(default_factory=list)
    """What the forecast rests on and what it leaves out, for people."""


@dataclass(frozen=True)
class Ahead:
    """How long a stage will still take, in seconds, and why it is thought so."""

    low_s: float
    high_s: float
    why: str


def _gpus(job: FineTuneJob, stage: Stage) -> int:
    """GPUs that a stage holds: those of the gang while training, of one node otherwise; none on CPU stages."""
    kind, resolved = KINDS[stage], job.status.resolved if job.status else None
    if resolved is None or not kind.needs_gpu:
        return 0
    return resolved.gpus_per_node * (job.spec.compute.nodes if kind.gang else 1)


def _running_seconds(attempt: StageStatus | None, now: datetime) -> float:
    if attempt is None or not is_active(attempt) or attempt.started_at is None:
        return 0.0
    return max(0.0, (now - attempt.started_at).total_seconds())


def _ahead(status: FineTuneJobStatus, stage: Stage, live: Progress | None, running_s: float) -> Ahead | None:
    """What a GPU stage without a result will still take; the best that is known, from the surest source on."""
    newest = status.stages[-1] if status.stages else None
    runs = newest is not None and newest.name == stage and is_active(newest)
    if runs and live is not None and live.stage == stage and live.eta_seconds is not None:
        return Ahead(live.eta_seconds, live.eta_seconds, f"{stage} {duration(live.eta_seconds)} more")
    baseline_s = stage_seconds(newest_attempt(status, "baseline")) if status.results.baseline is not None else None
    done_s = running_s if runs else 0.0
    if stage == "evaluate" and baseline_s is not None:
        # The same rows through the same model on the same GPU.
        left_s = max(0.0, baseline_s - done_s)
        return Ahead(left_s, left_s, f"evaluate as long as baseline, {duration(baseline_s)}")
    known = next((item for item in status.forecast.stages if item.stage == stage), None) if status.forecast else None
    if known is not None and known.seconds_low is not None and known.seconds_high is not None:
        told = f"{stage} {duration(known.seconds_low)} to {duration(known.seconds_high)}"
        return Ahead(max(0.0, known.seconds_low - done_s), max(0.0, known.seconds_high - done_s), told)
    budget_s = status.plan.time_budget_seconds if status.plan is not None else None
    if stage == "train" and budget_s is not None:
        return Ahead(0.0, max(0.0, budget_s - done_s), f"train at most {duration(budget_s)}")
    return None


def costs_of(job: FineTuneJob, live: Progress | None, now: datetime) -> Costs | None:
    """Actual and forecast cost; None when the pool has no price."""
    status = job.status
    price = status.resolved.pool_spec.price if status is not None and status.resolved is not None else None
    if status is None or price is None:
        return None
    newest = status.stages[-1] if status.stages else None
    running_s = _running_seconds(newest, now)
    spent = status.cost or 0.0
    if newest is not None:
        spent += running_s / 3600 * _gpus(job, newest.name) * price.gpu_per_hour
    limit = job.spec.compute.max_cost
    if status.phase in FINISHED_PHASES:
        return Costs(price.currency, price.gpu_per_hour, spent, (spent, spent), limit)
    low = high = spent
    basis: list[str] = []
    unknown: list[str] = []
    for stage in GPU_STAGES:
        if getattr(status.results, stage) is not None:
            continue
        ahead = _ahead(status, stage, live, running_s)
        if ahead is None:
            unknown.append(stage)
            continue
        basis.append(ahead.why)
        per_second = _gpus(job, stage) * price.gpu_per_hour / 3600
        low += ahead.low_s * per_second
        high += ahead.high_s * per_second
    if unknown:
        return Costs(
            price.currency, price.gpu_per_hour, spent, None, limit, [*basis, f"not known yet: {', '.join(unknown)}"]
        )
    return Costs(price.currency, price.gpu_per_hour, spent, (low, high), limit, basis)
