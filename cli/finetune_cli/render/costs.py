"""What a run has cost and may cost, from what its status knows. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from finetune_api.finetunejob import FineTuneJob
from finetune_api.job.status import FINISHED_PHASES, StageStatus
from finetune_api.stages import Progress, Stage
from finetune_cli.render.stages import duration, newest_attempt, stage_seconds
from finetune_operator.decide.attempts import is_active
from finetune_operator.decide.stages import KINDS


@dataclass(frozen=True)
class Costs:
    """Money in `currency`; None where it cannot be known."""

    currency: str
    price_per_gpu_hour: float
    spent: float
    """Of ended attempts, and of the running one until now."""
    forecast: float | None = None
    """At the end of the run, with what is in `basis`."""
    limit: float | None = None
    basis: list[str] = field(default_factory=list)
    """What the forecast rests on and what it leaves out, for people."""


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


def costs_of(job: FineTuneJob, live: Progress | None, now: datetime) -> Costs | None:
    """Actual and forecast cost; None when the pool has no price."""
    status = job.status
    price = status.resolved.pool_spec.price if status is not None and status.resolved is not None else None
    if status is None or price is None:
        return None
    newest = status.stages[-1] if status.stages else None
    spent = status.cost or 0.0
    if newest is not None:
        spent += _running_seconds(newest, now) / 3600 * _gpus(job, newest.name) * price.gpu_per_hour
    if status.phase in FINISHED_PHASES:
        return Costs(price.currency, price.gpu_per_hour, spent, spent, job.spec.compute.max_cost)
    ahead = 0.0
    basis: list[str] = []
    unknown: list[str] = []
    for stage in ("baseline", "train", "evaluate"):
        if getattr(status.results, stage) is not None:
            continue
        seconds: float | None = None
        if live is not None and live.eta_seconds is not None and newest is not None and live.stage == stage:
            seconds = live.eta_seconds
            basis.append(f"{stage} {duration(seconds)} more")
        elif stage == "evaluate":
            # The same rows through the same model: what the baseline took is the best guess there is.
            seconds = stage_seconds(newest_attempt(status, "baseline")) if status.results.baseline else None
            if seconds is not None:
                basis.append(f"evaluate as long as baseline, {duration(seconds)}")
        elif stage == "train" and status.plan is not None and status.plan.time_budget_seconds is not None:
            seconds = float(status.plan.time_budget_seconds)
            basis.append(f"train at most {duration(seconds)}")
        if seconds is None:
            unknown.append(stage)
        else:
            ahead += seconds / 3600 * _gpus(job, stage) * price.gpu_per_hour
    if unknown:
        basis.append(f"not known yet: {', '.join(unknown)}")
    forecast = spent + ahead if "train" not in unknown and len(unknown) < 2 else None
    return Costs(price.currency, price.gpu_per_hour, spent, forecast, job.spec.compute.max_cost, basis)
