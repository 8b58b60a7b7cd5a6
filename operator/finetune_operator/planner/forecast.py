"""The forecast of a run: memory, disk, time, cost and smallest gain, from the plan. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from finetune_api.job.forecast import Forecast, ForecastStage, MemoryShare, Moment, MomentForecast, StageForecast
from finetune_api.job.method import DEFAULT_BITS
from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.job.status import Resolved
from finetune_api.stages import ModelFacts, PrepareResult, TrainPlan
from finetune_operator.planner.advice import smallest_change, what_would_fit
from finetune_operator.planner.cost import budget_notes, cost
from finetune_operator.planner.disk import disk_bytes, host_bytes, pinned_bytes, quantity_bytes
from finetune_operator.planner.fit import (
    Demand,
    Offered,
    fit,
    judging_memory,
    merge_breakdown,
    stage_memory,
    train_breakdown,
    train_moments,
    worst_fit,
)
from finetune_operator.planner.gain import minimum_detectable_gain
from finetune_operator.planner.gpus import MethodType, Range, gpu_of
from finetune_operator.planner.host import host_fits, host_refusal, whole_base_bytes, whole_bases
from finetune_operator.planner.memory.adapter import adapter_parameters
from finetune_operator.planner.memory.breakdown import GIB, Breakdown
from finetune_operator.planner.memory.optimizer import optimiser_bytes_per_parameter
from finetune_operator.planner.memory.sharding import shards
from finetune_operator.planner.memory.weights import BYTES_PER_PARAMETER
from finetune_operator.planner.shape import ModelShape, UnknownShapeError, shape_of
from finetune_operator.planner.strategy import memory_strategy_of
from finetune_operator.planner.time import Timing, planned_tokens, stage_seconds
from finetune_operator.planner.workload import SEQUENCES, Workload, prompt_tokens, workload_of

NOTE_LIMIT = 512
MOST_NOTES = 8
MASTER_AND_GRADIENT_BYTES = 8
"""Of DeepSpeed's fp32 copy of a parameter of the adapter, and of its gradient."""


def demand_of(
    spec: FineTuneJobSpec,
    shape: ModelShape,
    facts: ModelFacts,
    work: Workload,
    method: MethodType,
    processes: int,
    *,
    packed: bool,
) -> Demand:
    """What the job asks of one GPU."""
    return Demand(
        shape=shape,
        method=method,
        rank=spec.method.rank,
        target_modules=shape.trained(spec.method.target_modules, spec.method.exclude_modules),
        dropout=spec.method.dropout,
        longest_row=work.longest_row,
        longest_prompt=prompt_tokens(spec, work, facts.context_length),
        max_new_tokens=spec.evaluation.max_new_tokens,
        validation_rows=work.validation_rows,
        few_shot=spec.evaluation.few_shot or 0,
        typical_row=work.typical_length,
        prompt_room=max(1, facts.context_length - spec.evaluation.max_new_tokens) if facts.context_length else 0,
        validation_samples=spec.training.validation_samples,
        asked_micro_batch=spec.training.micro_batch_size,
        test_rows=work.test_rows,
        packed=packed,
        serves_merged=spec.output.served_as == "merged",
        strategy="ddp" if processes > 1 else "single",
        gpus=processes,
        bits=spec.method.bits or DEFAULT_BITS,
        full_precision="fp32" in (spec.training.precision, spec.model.dtype),
        dora=spec.method.use_dora,
        optimizer=spec.training.optimizer,
        sequences=SEQUENCES[spec.method.objective],
        asks_reference=spec.method.objective != "sft",
        checkpointing=spec.training.gradient_checkpointing != "disabled",
    )


def planned_demand(spec: FineTuneJobSpec, prepared: PrepareResult, plan: TrainPlan) -> Demand:
    """What a planned job asks of one GPU. Raises UnknownShapeError when the model's shape is not known."""
    work, processes = workload_of(spec, prepared), plan.nodes * plan.gpus_per_node
    shape = shape_of(prepared.model)
    return replace(
        demand_of(spec, shape, prepared.model, work, plan.method, processes, packed=plan.packing),
        strategy=memory_strategy_of(plan),
        offload=plan.offload,
        judging_gpus=plan.judging_gpus,
        checkpointing=plan.gradient_checkpointing,
        attention=plan.attention,
    )


def _at_its_least(demand: Demand, spec: FineTuneJobSpec) -> Demand:
    """The demand that advice starts from: a plan of its own recomputes activations again where it has to."""
    if spec.training.gradient_checkpointing == "auto":
        return replace(demand, checkpointing=True)
    return demand


def merged_form_fits(demand: Demand, facts: ModelFacts, resolved: Resolved) -> bool:
    """Whether the merged model can be made and judged: GPU, host memory and scratch disk."""
    pool = resolved.pool_spec
    if fit(merge_breakdown(demand), pool.gpu_memory_gib) != "Fits":
        return False
    host = _merging_bytes(demand.shape)
    targets = demand.shape.targets(demand.target_modules)
    cached = pool.model_cache is not None
    disk = disk_bytes(demand.shape, facts.file_bytes, demand.rank, targets, merges=True, cached=cached)
    return host <= quantity_bytes(pool.gpu_pod.memory) and disk <= quantity_bytes(pool.scratch_size)


def _merging_bytes(shape: ModelShape) -> float:
    """Host memory of making the merged form in one process."""
    return host_bytes(shape, 1, whole_bytes=2.0 * shape.parameters, from_files=False)


@dataclass(frozen=True)
class _Case:
    """Everything a forecast rests on."""

    spec: FineTuneJobSpec
    resolved: Resolved
    prepared: PrepareResult
    plan: TrainPlan
    shape: ModelShape
    work: Workload
    demand: Demand

    @property
    def merges(self) -> bool:
        """Whether evaluate makes the merged model."""
        return self.demand.serves_merged or (self.plan.method == "qlora" and self.plan.judge_both_forms)

    @property
    def cuts(self) -> bool:
        """Whether training cuts the base into parts."""
        return shards(self.demand.strategy, 2)[0] > 1


def forecast(spec: FineTuneJobSpec, resolved: Resolved, prepared: PrepareResult, plan: TrainPlan) -> Forecast:
    """The forecast of a planned run. Never raises: what is not known is left out, and a note says why."""
    work = workload_of(spec, prepared)
    gain = minimum_detectable_gain(spec.evaluation.metrics[0].name, work.test_rows)
    known: dict[str, Any] = {"minimum_detectable_gain": None if gain is None else round(gain, 4)}
    tokens = plan.total_steps * spec.training.global_batch_size * work.mean_length * SEQUENCES[spec.method.objective]
    known["train_tokens"] = round(tokens)
    if not plan.gpus_per_node:
        return Forecast(fit="Unknown", notes=["a pool without GPUs: memory and time are not forecast"], **known)
    try:
        demand = planned_demand(spec, prepared, plan)
    except UnknownShapeError as error:
        notes = [f"no forecast of memory and time: {error}"[:NOTE_LIMIT], *_least_weights(prepared.model)]
        return Forecast(fit="Unknown", notes=notes, **known)
    case = _Case(spec, resolved, prepared, plan, demand.shape, work, demand)
    memory = stage_memory(demand, plan.micro_batch_size, merges=case.merges)
    seconds, timed = _timing(case)
    host, disk = _host(case), _disk(case)
    host_limit = quantity_bytes(resolved.pool_spec.gpu_pod.memory)
    return Forecast(
        fit=worst_fit(memory, resolved.pool_spec.gpu_memory_gib)
        if host_fits(demand, plan.gpus_per_node, host_limit)
        else "DoesNotFit",
        gpu_memory_gib=_gib(max(part.device_bytes for part in memory.values())),
        available_gpu_memory_gib=resolved.pool_spec.gpu_memory_gib,
        host_memory_gib=_gib(host),
        disk_gib=_gib(disk),
        stages=[
            _stage(name, breakdown, seconds.get(name), _moments(demand, plan) if name == "train" else [])
            for name, breakdown in memory.items()
        ],
        notes=_notes(case, memory, host, disk, seconds, timed)[:MOST_NOTES],
        **(known | timed),
    )


def _least_weights(facts: ModelFacts) -> list[str]:
    """What is sure of a model without a known shape: its weights."""
    if facts.parameters <= 0:
        return []
    whole, quantised = (facts.parameters * size for size in (BYTES_PER_PARAMETER["none"], BYTES_PER_PARAMETER["nf4"]))
    return [f"its weights alone take {_gib(whole):g} GiB in 16 bit, about {_gib(quantised):g} GiB in 4 bit"]


def refusal(spec: FineTuneJobSpec, resolved: Resolved, prepared: PrepareResult, plan: TrainPlan) -> tuple[str, str]:
    """Why a run with fit DoesNotFit is refused, and what would fit.

    Raises UnknownShapeError when the model's shape is not known: then nothing is refused.
    """
    work = workload_of(spec, prepared)
    demand = _at_its_least(planned_demand(spec, prepared, plan), spec)
    memory_gib = resolved.pool_spec.gpu_memory_gib
    micro = demand.least_micro_batch
    fewer = [size for size in range(1, micro) if micro % size == 0 and _holds(demand, size, memory_gib)]
    if fewer:
        return _too_many_examples(demand, max(fewer), resolved)
    stages = stage_memory(demand, micro, merges=demand.serves_merged)
    host_limit = quantity_bytes(resolved.pool_spec.gpu_pod.memory)
    if worst_fit(stages, memory_gib) != "DoesNotFit" and not host_fits(demand, plan.gpus_per_node, host_limit):
        return host_refusal(demand, plan.gpus_per_node, resolved, forecast(spec, resolved, prepared, plan))
    name, breakdown = max(stages.items(), key=lambda stage: stage[1].device_bytes)
    parts = ", ".join(f"{part} {size / GIB:.1f}" for part, size in list(breakdown.components.items())[:3])
    message = (
        f"does not fit: {name} with {plan.method} needs {breakdown.device_bytes / GIB:.1f} GiB on one GPU at "
        f"micro-batch {micro} ({parts}); a GPU of pool {resolved.pool} has {memory_gib:g} GiB"
    )
    pool = resolved.pool_spec
    offered = Offered(
        memory_gib, pool.gpus_per_node, pool.limits.max_gpus, pool.limits.max_nodes, spec.training.global_batch_size
    )
    return message, what_would_fit(demand, offered, prepared.lengths.p95 or work.longest_row)


def _holds(demand: Demand, micro_batch: int, memory_gib: float) -> bool:
    return worst_fit(stage_memory(demand, micro_batch, merges=demand.serves_merged), memory_gib) == "Fits"


def _too_many_examples(demand: Demand, fewer: int, resolved: Resolved) -> tuple[str, str]:
    """The refusal of a job that would fit but for training.microBatchSize."""
    micro = demand.least_micro_batch
    need = train_breakdown(demand, micro).device_bytes / GIB
    return (
        f"does not fit: training.microBatchSize {micro} needs {need:.1f} GiB on one GPU; a GPU of pool {resolved.pool} "
        f"has {resolved.pool_spec.gpu_memory_gib:g} GiB",
        f"set training.microBatchSize: {fewer}, or leave it out: globalBatchSize stays what it is",
    )


def with_measurements(
    before: Forecast | None, plan: TrainPlan | None, peak_bytes: int, seconds: float
) -> Forecast | None:
    """The forecast beside what training measured."""
    if before is None or plan is None:
        return before
    where = "measured_gpu_memory_gib" if plan.gpus_per_node else "measured_host_memory_gib"
    measured: dict[str, Any] = {"measured_train_seconds": round(seconds, 1)}
    if peak_bytes:
        measured[where] = _gib(peak_bytes)
    return before.model_copy(update=measured)


def with_stage_measurement(
    before: Forecast | None, plan: TrainPlan | None, stage: ForecastStage, peak_bytes: int, seconds: float
) -> Forecast | None:
    """The forecast of one stage beside what it measured; 0 means that nothing was measured (a cached baseline)."""
    if before is None or plan is None or not plan.gpus_per_node:
        return before
    measured: dict[str, Any] = {}
    if peak_bytes:
        measured["measured_gpu_memory_gib"] = _gib(peak_bytes)
        if seconds:
            measured["measured_seconds"] = round(seconds, 1)
    stages = [known.model_copy(update=measured) if known.stage == stage else known for known in before.stages]
    return before.model_copy(update={"stages": stages})


def _gib(size: float) -> float:
    return round(size / GIB, 1)


def moment_forecast(moment: Moment, breakdown: Breakdown) -> MomentForecast:
    """A moment of training as the contract has it."""
    return MomentForecast(
        moment=moment,
        tensors_gib=_gib(breakdown.allocated_bytes),
        reserved_gpu_memory_gib=_gib(breakdown.reserved_bytes),
        gpu_memory_gib=_gib(breakdown.device_bytes),
    )


def _moments(demand: Demand, plan: TrainPlan) -> list[MomentForecast]:
    return [moment_forecast(name, part) for name, part in train_moments(demand, plan.micro_batch_size).items()]


def _stage(name: str, breakdown: Breakdown, seconds: Range | None, moments: list[MomentForecast]) -> StageForecast:
    return StageForecast.model_validate(
        {
            "stage": name,
            "gpu_memory_gib": _gib(breakdown.device_bytes),
            "reserved_gpu_memory_gib": _gib(breakdown.reserved_bytes),
            "components": [
                MemoryShare(component=part, gib=round(size / GIB, 2)) for part, size in breakdown.components.items()
            ],
            "moments": moments,
            "seconds_low": None if seconds is None else float(round(seconds[0])),
            "seconds_high": None if seconds is None else float(round(seconds[1])),
        }
    )


def _timing(case: _Case) -> tuple[Mapping[str, Range], dict[str, Any]]:
    """Seconds per stage, and the forecast's fields of time and cost; both empty for an unknown GPU."""
    pool, plan = case.resolved.pool_spec, case.plan
    gpu = gpu_of(pool, case.resolved.pool)
    if gpu is None:
        return {}, {}
    timing = Timing(case.spec, plan, case.shape, gpu, case.work)
    seconds = stage_seconds(timing)
    fields: dict[str, Any] = {
        "gpu_model": gpu.name,
        "train_tokens": planned_tokens(timing),
        "train_seconds_low": float(round(seconds["train"][0])),
        "train_seconds_high": float(round(seconds["train"][1])),
    }
    if pool.price is not None:
        low, high = cost(seconds, plan.nodes, plan.gpus_per_node, pool.price.gpu_per_hour)
        fields |= {"cost_low": round(low, 2), "cost_high": round(high, 2), "currency": pool.price.currency}
    return seconds, fields


def _host(case: _Case) -> float:
    training = host_bytes(
        case.shape,
        case.plan.gpus_per_node,
        whole_bytes=whole_base_bytes(case.demand) if case.cuts else 0.0,
        wholes=whole_bases(case.demand, case.plan.gpus_per_node),
        from_files=case.plan.method == "qlora",
        offloaded_bytes=_offloaded_bytes(case),
    )
    return max(training, _merging_bytes(case.shape) if case.merges else 0.0)


def _offloaded_bytes(case: _Case) -> float:
    """What a process keeps in host memory while it trains, with DeepSpeed's offload."""
    demand = case.demand
    if demand.offload == "none":
        return 0.0
    targets = demand.shape.targets(demand.target_modules)
    parameters = adapter_parameters(demand.shape, demand.rank, targets, dora=demand.dora)
    states = optimiser_bytes_per_parameter(demand.optimizer, 4, demand.rank)
    size = parameters * (MASTER_AND_GRADIENT_BYTES + states) / demand.gpus
    if demand.offload == "parameters":
        size += pinned_bytes(demand.shape, BYTES_PER_PARAMETER[demand.quantisation], demand.gpus)
    return size


def _disk(case: _Case) -> float:
    targets = case.shape.targets(case.demand.target_modules)
    files, rank = case.prepared.model.file_bytes, case.spec.method.rank
    cached = case.resolved.pool_spec.model_cache is not None
    tokens = case.prepared.train_tokens * SEQUENCES[case.spec.method.objective]
    return disk_bytes(case.shape, files, rank, targets, merges=case.merges, cached=cached, row_tokens=tokens)


def _notes(
    case: _Case,
    memory: Mapping[str, Breakdown],
    host: float,
    disk: float,
    seconds: Mapping[str, Range],
    timed: Mapping[str, Any],
) -> list[str]:
    """What a reader should know, most important first."""
    pool, plan = case.resolved.pool_spec, case.plan
    notes = []
    tight = [name for name, part in memory.items() if fit(part, pool.gpu_memory_gib) == "Tight"]
    if tight:
        notes.append(
            f"tight: {', '.join(tight)} may run out of GPU memory; the run then goes on with a smaller micro-batch"
            if tight == ["train"] and plan.micro_batch_size > 1
            else f"tight: {', '.join(tight)} may run out of GPU memory; {_room(case)} gives room"
        )
    if host > quantity_bytes(pool.gpu_pod.memory):
        why = " (the base is there whole before it is cut into parts)" if case.cuts else ""
        notes.append(
            f"host memory: about {_gib(host)} GiB are needed{why}, pods of the pool get {pool.gpu_pod.memory}; raise "
            "gpuPod.memory of the pool, or lower compute.gpusPerNode"
        )
    if disk > quantity_bytes(pool.scratch_size):
        notes.append(f"disk: about {_gib(disk)} GiB are needed, pods of the pool get {pool.scratch_size}")
    costs = (timed["cost_low"], timed["cost_high"]) if "cost_low" in timed else None
    notes += budget_notes(case.spec.compute, seconds, costs, timed.get("currency", ""))
    if plan.judging_gpus > 1 and case.spec.evaluation.engine == "transformers":
        notes.append(
            f"baseline and evaluate spread the base over {plan.judging_gpus} GPUs of a pod: "
            f"{'its merged form' if _only_merged_is_spread(case) else 'it'} does not fit on one"
        )
    if plan.method == "qlora" and not case.demand.serves_merged and not plan.judge_both_forms:
        need = merge_breakdown(case.demand).device_bytes
        notes.append(f"only the adapter is judged: the merged form in 16 bit needs {_gib(need)} GiB on one GPU")
    notes.append(_recommendation(case))
    if not seconds:
        notes.append("times and cost are not forecast: set gpuModel in the pool, for example A100-80")
    return notes


def _only_merged_is_spread(case: _Case) -> bool:
    """Whether one GPU would do but for the merged form."""
    judging = judging_memory(replace(case.demand, judging_gpus=1), merges=False)
    return case.demand.serves_merged and worst_fit(judging, case.resolved.pool_spec.gpu_memory_gib) == "Fits"


def _room(case: _Case) -> str:
    """The smallest edit after which nothing is tight, or what helps at least."""
    p95 = case.prepared.lengths.p95 or case.work.longest_row
    edit = smallest_change(_at_its_least(case.demand, case.spec), case.resolved.pool_spec.gpu_memory_gib, p95)
    return edit or "a shorter training.maxLength"


def _recommendation(case: _Case) -> str:
    """Recommend lora where it fits, else qlora: 16-bit weights are exact, 4-bit ones are for want of memory."""
    other: MethodType = "lora" if case.plan.method == "qlora" else "qlora"
    stages = stage_memory(replace(case.demand, method=other), 1, merges=case.demand.serves_merged)
    need = _gib(max(part.device_bytes for part in stages.values()))
    if other == "qlora":
        return f"lora trains on the exact base; qlora would need {need} GiB at micro-batch 1"
    if worst_fit(stages, case.resolved.pool_spec.gpu_memory_gib) == "Fits":
        return f"lora would fit too ({need} GiB at micro-batch 1) and trains on the exact base"
    return f"qlora for want of memory: lora needs {need} GiB at micro-batch 1"
