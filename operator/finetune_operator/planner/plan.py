"""What Planned freezes: method, strategy, batch, steps and time budget. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from finetune_api.common import duration_s
from finetune_api.job.method import DEFAULT_BITS
from finetune_api.job.recipe import epochs, learning_rate
from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.job.status import Resolved
from finetune_api.mixtures import refusal
from finetune_api.stages import ModelFacts, PrepareResult, Strategy, TrainPlan
from finetune_operator.planner.compiling import compiles
from finetune_operator.planner.evaluations import evaluation_cost_steps, evaluation_interval
from finetune_operator.planner.fit import (
    LARGEST_MICRO_BATCH,
    Demand,
    judging_gpus_for,
    largest_micro_batch,
    stage_memory,
    train_breakdown,
    worst_fit,
)
from finetune_operator.planner.flops import training_flops_per_token
from finetune_operator.planner.forecast import demand_of, merged_form_fits
from finetune_operator.planner.gpus import MethodType, gpu_of
from finetune_operator.planner.memory.attention import Attention
from finetune_operator.planner.memory.breakdown import GIB
from finetune_operator.planner.shape import UnknownShapeError, needs_eager, shape_of
from finetune_operator.planner.steps import PlanError, Steps, packs, plan_steps, split_batch
from finetune_operator.planner.strategy import Choice, choose, cuts_optimizer, cuts_weights, memory_strategy
from finetune_operator.planner.time import Timing, train_seconds
from finetune_operator.planner.workload import workload_of

TRAIN_SHARE_OF_BUDGET = 0.7
"""Share of maxCost and maxDuration that training may use; the rest is kept to evaluate and publish."""
WEIGHTS_SHARE = 0.6
"""Of a model without a known shape: 16-bit weights up to this share of the GPU's memory are trained with lora, and
weights up to it are judged on one GPU."""

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


def _method_without_shape(facts: ModelFacts, memory_gib: float) -> MethodType:
    return "lora" if 2 * facts.parameters <= WEIGHTS_SHARE * memory_gib * GIB else "qlora"


def _as_asked(
    choice: Choice, spec: FineTuneJobSpec, demand: Demand | None, memory_gib: float, processes: int
) -> Choice:
    """The choice with training.gradientCheckpointing as the user says, and the micro-batch that goes with it."""
    asked = spec.training.gradient_checkpointing
    if asked == "auto":
        return choice
    choice = replace(choice, checkpointing=asked == "enabled")
    if demand is None:
        return choice
    return replace(choice, largest_micro_batch=largest_micro_batch(_under(choice, demand, processes), memory_gib))


def _under(choice: Choice, demand: Demand, processes: int) -> Demand:
    """The demand of one GPU when training goes by a choice."""
    return replace(
        demand,
        strategy=memory_strategy(choice.strategy, demand.method, choice.zero_stage),
        gpus=processes,
        offload=choice.offload,
        checkpointing=choice.checkpointing,
    )


def _auto_method(spec: FineTuneJobSpec, demand: Demand, memory_gib: float, processes: int) -> MethodType:
    """Lora when every stage fits with it: on one GPU, or as a strategy that the user names shares it out."""
    if spec.compute.strategy in ("fsdp", "deepspeed"):
        choice = _as_asked(choose(spec.compute, demand, memory_gib, processes), spec, demand, memory_gib, processes)
        demand = _under(choice, demand, processes)
    stages = stage_memory(demand, demand.least_micro_batch, merges=demand.serves_merged)
    return "lora" if worst_fit(stages, memory_gib) == "Fits" else "qlora"


def _refuse_optimizer(spec: FineTuneJobSpec, strategy: Strategy, method: MethodType) -> None:
    if not cuts_optimizer(spec.training.optimizer, strategy, method):
        raise PlanError(
            f"training.optimizer: the states of {spec.training.optimizer} cannot be shared out by strategy {strategy} "
            f"with {method}; use adamw_torch_fused, or compute.strategy: ddp"
        )


def _refuse_8_bit(spec: FineTuneJobSpec, choice: Choice, method: MethodType) -> None:
    parts = choice.strategy == "fsdp" or (choice.strategy == "deepspeed" and choice.zero_stage == 3)
    if parts and not cuts_weights(spec.method, method):
        raise PlanError(
            f"method.bits: 8-bit weights cannot be shared out by strategy {choice.strategy}; set bits: 4, or "
            "compute.strategy: ddp"
        )


def _demand(
    spec: FineTuneJobSpec, resolved: Resolved, prepared: PrepareResult, processes: int, *, packed: bool
) -> Demand | None:
    """What the job asks of a GPU, with lora; None without GPUs or when the model's shape is not known."""
    if not resolved.gpus_per_node:
        return None
    try:
        shape = shape_of(prepared.model)
    except UnknownShapeError:
        return None
    work = workload_of(spec, prepared)
    demand = demand_of(spec, shape, prepared.model, work, "lora", processes, packed=packed)
    return replace(demand, attention="eager") if _eager(spec, prepared.model) else demand


def _eager(spec: FineTuneJobSpec, facts: ModelFacts) -> bool:
    wanted = spec.model.attention
    return wanted == "eager" or (wanted == "auto" and needs_eager(facts.architecture))


def _packs(spec: FineTuneJobSpec, steps: Steps, gpus: int, facts: ModelFacts) -> bool:
    """With eager attention only on request: scores of a packed row hold pairs of tokens that do not see each other."""
    packable = spec.method.objective == "sft" and not (spec.training.packing == "auto" and _eager(spec, facts))
    return packs(spec.training, steps, gpus, packable=packable)


def _judging_gpus(
    spec: FineTuneJobSpec, demand: Demand | None, facts: ModelFacts, method: MethodType, resolved: Resolved
) -> int:
    """GPUs over which one copy is spread where it is asked and scored."""
    per_node, memory_gib = max(1, resolved.gpus_per_node), resolved.pool_spec.gpu_memory_gib
    if spec.evaluation.engine == "vllm":
        return per_node  # tensor parallelism over all GPUs of the pod
    if demand is not None:
        return judging_gpus_for(demand, memory_gib, per_node)
    if not resolved.gpus_per_node:
        return 1
    size = facts.parameters * (2.0 if method == "lora" else (spec.method.bits or DEFAULT_BITS) / 8)
    counts = [gpus for gpus in range(1, per_node + 1) if per_node % gpus == 0]
    return next((gpus for gpus in counts if size / gpus <= WEIGHTS_SHARE * memory_gib * GIB), per_node)


def _precision(spec: FineTuneJobSpec, gpus: int) -> Literal["fp32", "bf16"]:
    for asked in (spec.training.precision, spec.model.dtype):
        if asked != "auto":
            return asked
    return "bf16" if gpus else "fp32"


def _attention(spec: FineTuneJobSpec, facts: ModelFacts, *, packed: bool, gpus: int, precision: str) -> Attention:
    """Raises PlanError when flash is asked for where its kernel does not run."""
    if _eager(spec, facts):
        return "eager"
    can = gpus > 0 and precision == "bf16"
    wanted = spec.model.attention
    if wanted == "flash" and not can:
        raise PlanError("model.attention: flash needs a GPU and model.dtype bf16; use attention: auto")
    if wanted != "auto":
        return wanted
    return "flash" if can and packed else "sdpa"


def _speed_facts(resolved: Resolved, demand: Demand | None, mean_length: float) -> dict[str, Any]:
    """What the runner needs to tell its model FLOPs utilisation; recomputation is not useful work."""
    gpu = gpu_of(resolved.pool_spec, resolved.pool)
    if demand is None or gpu is None:
        return {}
    operations = training_flops_per_token(demand.shape, mean_length, checkpointing=False)
    return {"gpu_peak_tflops": gpu.tflops, "flops_per_token": float(operations)}


def make_plan(spec: FineTuneJobSpec, resolved: Resolved, prepared: PrepareResult, spent_cost: float = 0.0) -> TrainPlan:
    """The plan of the GPU stages. Raises PlanError naming the field to change."""
    refused = refusal(spec.method, prepared.model)
    if refused is not None:
        raise PlanError("; ".join(refused))
    gpus = resolved.gpus_per_node
    processes = spec.compute.nodes * max(1, gpus)
    passes = epochs(spec.method, spec.training)
    steps = plan_steps(spec.training, passes, prepared.rows.train + prepared.rows.replay)
    work = workload_of(spec, prepared)
    memory_gib = resolved.pool_spec.gpu_memory_gib
    packed = _packs(spec, steps, gpus, prepared.model)
    demand = _demand(spec, resolved, prepared, processes, packed=packed)

    method: MethodType
    if spec.method.type != "auto":
        method = spec.method.type
    elif demand is not None:
        method = _auto_method(spec, demand, memory_gib, processes)
    else:
        method = _method_without_shape(prepared.model, memory_gib) if gpus else "lora"

    precision = _precision(spec, gpus)
    attention = _attention(spec, prepared.model, packed=packed, gpus=gpus, precision=precision)
    if demand is not None:
        demand = replace(demand, method=method, attention=attention)
    choice = _as_asked(choose(spec.compute, demand, memory_gib, processes), spec, demand, memory_gib, processes)
    _refuse_optimizer(spec, choice.strategy, method)
    _refuse_8_bit(spec, choice, method)
    if demand is not None:
        demand = _under(choice, demand, processes)
    judging_gpus = _judging_gpus(spec, demand, prepared.model, method, resolved)
    if demand is not None:
        demand = replace(demand, judging_gpus=judging_gpus)
    largest = choice.largest_micro_batch if gpus else LARGEST_MICRO_BATCH
    micro, accumulation = split_batch(
        spec.training.global_batch_size, processes, largest, spec.training.micro_batch_size
    )
    need = None if demand is None else round(train_breakdown(demand, micro).device_bytes / GIB, 1)
    plan = TrainPlan(
        method=method,
        strategy=choice.strategy,
        zero_stage=choice.zero_stage,
        offload=choice.offload,
        nodes=spec.compute.nodes,
        gpus_per_node=gpus,
        total_steps=steps.total,
        micro_batch_size=micro,
        gradient_accumulation=accumulation,
        extend_to=steps.extend_to,
        eval_steps=evaluation_interval(spec.training, steps, evaluation_cost_steps(spec, work, prepared.model, method)),
        learning_rate=learning_rate(spec.method, spec.training),
        epochs=passes,
        packing=packed,
        attention=attention,
        gradient_checkpointing=choice.checkpointing
        if spec.training.gradient_checkpointing != "auto"
        else bool(gpus) and choice.checkpointing,
        precision=precision,
        time_budget_seconds=_time_budget_seconds(spec, resolved, spent_cost),
        forecast_gpu_memory_gib=need,
        **_speed_facts(resolved, demand, work.mean_length),
        judging_gpus=judging_gpus,
        judge_both_forms=demand is None or method == "lora" or merged_form_fits(demand, prepared.model, resolved),
    )
    gpu = gpu_of(resolved.pool_spec, resolved.pool)
    least = None
    if gpu is not None and demand is not None:
        least, _ = train_seconds(Timing(spec, plan, demand.shape, gpu, work))
    compiled, reason = compiles(spec, prepared.model, plan, least)
    return plan.model_copy(update={"torch_compile": compiled, "torch_compile_reason": reason})
