"""What Planned freezes: method, strategy, batch, steps and time budget. Pure."""

from __future__ import annotations

from typing import Literal

from finetune_api.common import duration_s
from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.job.status import Resolved
from finetune_api.stages import PrepareResult, TrainPlan
from finetune_operator.planner.memory import forecast_gpu_memory_gib
from finetune_operator.planner.steps import PlanError, packs, plan_steps, split_batch

LARGEST_MICRO_BATCH = 16
TRAIN_SHARE_OF_BUDGET = 0.7
"""Share of maxCost and maxDuration that training may use; the rest is kept to evaluate and publish."""

__all__ = ["PlanError", "make_plan"]


def _gpu_seconds_for(cost: float, price_per_hour: float, gpus: int) -> float:
    return cost / (price_per_hour * gpus) * 3600


def _time_budget_seconds(spec: FineTuneJobSpec, resolved: Resolved, spent_cost: float) -> int:
    budget = TRAIN_SHARE_OF_BUDGET * duration_s(spec.compute.max_duration)
    gpus = spec.compute.nodes * resolved.gpus_per_node
    price = resolved.pool_spec.price
    if spec.compute.max_cost is not None and price is not None and gpus and price.gpu_per_hour > 0:
        left = max(0.0, spec.compute.max_cost - spent_cost)
        budget = min(budget, TRAIN_SHARE_OF_BUDGET * _gpu_seconds_for(left, price.gpu_per_hour, gpus))
    return max(1, int(budget))


def make_plan(spec: FineTuneJobSpec, resolved: Resolved, prepared: PrepareResult, spent_cost: float = 0.0) -> TrainPlan:
    """The plan of the GPU stages. Raises PlanError naming the field to change."""
    gpus = resolved.gpus_per_node
    processes = spec.compute.nodes * max(1, gpus)
    steps = plan_steps(spec.training, prepared.rows.train + prepared.rows.replay)
    memory_gib = resolved.pool_spec.gpu_memory_gib

    def forecast(method: Literal["lora", "qlora"], micro_batch: int) -> float:
        return forecast_gpu_memory_gib(
            prepared.model,
            method,
            spec.method.rank,
            micro_batch,
            min(spec.training.max_length, prepared.lengths.maximum),
        )

    method: Literal["lora", "qlora"]
    if spec.method.type == "auto":
        method = "lora" if not gpus or forecast("lora", 1) <= memory_gib else "qlora"
    else:
        method = spec.method.type

    largest = LARGEST_MICRO_BATCH
    if gpus:
        while largest > 1 and forecast(method, largest) > memory_gib:
            largest //= 2
    micro, accumulation = split_batch(spec.training.global_batch_size, processes, largest)
    return TrainPlan(
        method=method,
        strategy="ddp" if processes > 1 else "single",
        nodes=spec.compute.nodes,
        gpus_per_node=gpus,
        total_steps=steps.total,
        micro_batch_size=micro,
        gradient_accumulation=accumulation,
        eval_steps=steps.eval_every,
        packing=packs(spec.training, steps, gpus),
        gradient_checkpointing=bool(gpus),
        precision="bf16" if gpus else "fp32",
        time_budget_seconds=_time_budget_seconds(spec, resolved, spent_cost),
        forecast_gpu_memory_gib=round(forecast(method, micro), 1) if gpus else None,
    )
