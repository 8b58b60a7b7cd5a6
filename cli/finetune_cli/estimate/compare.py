"""One job on several pools: what each would need, and the cheapest that fits. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from finetune_api.common import Storage
from finetune_api.finetunejob import FineTuneJob
from finetune_api.gpupool import GPUPool
from finetune_api.job.forecast import Fit, Forecast, MomentForecast
from finetune_api.stages import PrepareResult, TrainPlan
from finetune_operator.decide.resolve import Refusal, resolve
from finetune_operator.decide.types import Observed
from finetune_operator.planner.forecast import forecast, moment_forecast, planned_demand, refusal
from finetune_operator.planner.options import Option, options, reason, recommended
from finetune_operator.planner.plan import PlanError, make_plan
from finetune_operator.planner.recipe import recipe_warnings
from finetune_operator.planner.trainers import Trainer, other_step

ANYWHERE = Storage(uri="s3://estimate/estimate")
"""Where versions would go does not change a forecast; a job may leave it to the pool."""


@dataclass(frozen=True)
class PoolEstimate:
    """A job on one pool: a plan and its forecast, or why there is none."""

    pool: GPUPool
    plan: TrainPlan | None = None
    forecast: Forecast | None = None
    why_not: str = ""
    remedy: str = ""
    options: tuple[Option, ...] = ()
    """The same job on other numbers of GPUs; empty for a pool without GPUs."""
    advice: str = ""
    """How many GPUs are recommended, and why."""
    open_count: bool = False
    """Whether the job leaves compute.gpusPerNode out."""
    other_step: MomentForecast | None = None
    """The plan's step as another trainer would run it."""

    @property
    def fits(self) -> bool:
        """Whether the job would be let through without a doubt."""
        return self.forecast is not None and self.forecast.fit == "Fits"

    @property
    def asks_more(self) -> bool:
        """Whether the shown plan has more GPUs than a job gets that does not say how many."""
        return self.plan is not None and self.plan.gpus_per_node > 1 and self.open_count

    @property
    def name(self) -> str:
        """Name of the pool."""
        return self.pool.metadata.name


def estimate(job: FineTuneJob, prepared: PrepareResult, pool: GPUPool, trainer: Trainer | None = None) -> PoolEstimate:
    """What the operator would decide at Planned, on this pool; with a trainer, its step beside."""
    found = _estimate(job, prepared, pool)
    if trainer is None or found.plan is None or found.forecast is None or found.forecast.gpu_memory_gib is None:
        return found
    demand = planned_demand(job.spec, prepared, found.plan)
    step = moment_forecast("step", other_step(demand, found.plan.micro_batch_size, trainer))
    return replace(found, other_step=step)


def _estimate(job: FineTuneJob, prepared: PrepareResult, pool: GPUPool) -> PoolEstimate:
    spec = job.spec
    output = spec.output.model_copy(update={"storage": spec.output.storage or ANYWHERE})
    compute = spec.compute.model_copy(update={"pool": pool.metadata.name})
    if pool.spec.price is None:
        compute = compute.model_copy(update={"max_cost": None})
    # Neither needs what only a cluster has: a version to start from takes no memory of its own.
    method = spec.method.model_copy(update={"warm_start_from": None})
    spec = spec.model_copy(update={"output": output, "compute": compute, "method": method})
    outcome = resolve(Observed(job=job.model_copy(update={"spec": spec}), pools=(pool,), allow_file_sources=True))
    if isinstance(outcome, Refusal):
        return PoolEstimate(pool, why_not=outcome.message, remedy=outcome.next_step)
    try:
        plan = make_plan(spec, outcome, prepared)
    except PlanError as error:
        return PoolEstimate(pool, why_not=str(error))
    expected = forecast(spec, outcome, prepared, plan)
    found = tuple(options(spec, outcome, prepared)) if plan.gpus_per_node else ()
    best = recommended(spec, found)
    advice = reason(spec, found, best) if best is not None else ""
    is_open = job.spec.compute.gpus_per_node is None
    if best is not None and is_open:
        # The job leaves the number open: the pool is shown, and compared, at its best.
        plan, expected = best.plan, best.forecast
    if expected.fit == "DoesNotFit":
        why_not, remedy = refusal(spec, outcome, prepared, plan)
        return PoolEstimate(pool, plan, expected, why_not, remedy, found, advice, is_open)
    return PoolEstimate(pool, plan, expected, options=found, advice=advice, open_count=is_open)


FIT_ORDER: tuple[Fit, ...] = ("Fits", "Tight", "Unknown", "DoesNotFit")


def _order(candidate: PoolEstimate) -> tuple[float, float, float, float, float, str]:
    known = candidate.forecast
    cost = known.cost_high if known is not None else None
    seconds = known.train_seconds_high if known is not None else None
    # Of those that do not fit, the nearest: what it would take there is the most useful answer.
    missing = 0.0
    if known is not None and known.fit == "DoesNotFit":
        missing = (known.gpu_memory_gib or 0.0) / max(1.0, candidate.pool.spec.gpu_memory_gib)
    return (
        len(FIT_ORDER) if known is None else FIT_ORDER.index(known.fit),
        missing,
        math.inf if cost is None else cost,
        candidate.pool.spec.gpu_memory_gib,
        math.inf if seconds is None else seconds,
        candidate.name,
    )


def warnings(job: FineTuneJob, prepared: PrepareResult) -> list[str]:
    """What prepare and planning would warn of, wherever it runs: rows, lengths, settings."""
    spec, rows, facts = job.spec, prepared.rows, prepared.model
    found = recipe_warnings(spec, facts)
    least = spec.data.checks.minimum_rows
    if rows.train < least:
        found.append(
            f"data.train: about {rows.train} rows to train on, prepare ends a job below {least}; add rows, or "
            "lower data.checks.minimumRows"
        )
    longest = min(spec.training.max_length, prepared.lengths.maximum)
    if facts.context_length and longest > facts.context_length:
        found.append(
            f"training.maxLength: rows of {longest} tokens are longer than the model's context of "
            f"{facts.context_length}: set training.maxLength: {facts.context_length}, or use a model with a longer one"
        )
    return found


def compare(
    job: FineTuneJob, prepared: PrepareResult, pools: Sequence[GPUPool], trainer: Trainer | None = None
) -> list[PoolEstimate]:
    """All pools, the best first: those that fit, by cost where prices are known, then the smallest GPU."""
    return sorted((estimate(job, prepared, pool, trainer) for pool in pools), key=_order)
