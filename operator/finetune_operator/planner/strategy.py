"""Which strategy trains, with which micro-batch, and whether activations are recomputed. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from finetune_api.job.compute import Compute
from finetune_api.job.method import Method
from finetune_api.job.training import Optimizer
from finetune_api.stages import Offload, Strategy, TrainPlan
from finetune_operator.planner.fit import Demand, fit, fsdp_of, largest_micro_batch, train_breakdown
from finetune_operator.planner.gpus import MethodType, saturation_tokens
from finetune_operator.planner.memory.sharding import Strategy as MemoryStrategy
from finetune_operator.planner.steps import PlanError


@dataclass(frozen=True)
class Choice:
    """How the memory of the GPUs is used."""

    strategy: Strategy
    zero_stage: int = 3
    offload: Offload = "none"
    largest_micro_batch: int = 1
    checkpointing: bool = True


def memory_strategy(strategy: Strategy, method: MethodType, zero_stage: int) -> MemoryStrategy:
    """What a plan's strategy is called where memory is computed."""
    if strategy == "fsdp":
        return fsdp_of(method)
    if strategy == "deepspeed":
        return "zero3" if zero_stage == 3 else "zero2"
    return strategy


def memory_strategy_of(plan: TrainPlan) -> MemoryStrategy:
    """The same of a whole plan."""
    return memory_strategy(plan.strategy, plan.method, plan.zero_stage)


def cuts_weights(method: Method, planned: MethodType) -> bool:
    """Whether the base can be cut into parts: 8-bit weights are integers, which FSDP and ZeRO-3 do not flatten."""
    return planned == "lora" or method.bits != 8


def cuts_optimizer(optimizer: Optimizer, strategy: Strategy, method: MethodType) -> bool:
    """Whether a strategy can have an optimiser: bitsandbytes' and Adafactor's states cannot be cut into parts.

    FSDP with qlora keeps the adapter, and so its optimiser, whole.
    """
    cut = strategy == "deepspeed" or (strategy == "fsdp" and method == "lora")
    return not cut or optimizer == "adamw_torch_fused"


def _strategy(compute: Compute, demand: Demand | None, memory_gib: float, processes: int) -> Strategy:
    """One GPU if it fits, then a replica per GPU, then parts; what the user says goes before."""
    wanted = compute.strategy
    if wanted == "fsdp" or wanted == "deepspeed":
        offloads = compute.deepspeed is not None and compute.deepspeed.offload != "none"
        if processes < 2 and not offloads:
            raise PlanError(
                f"compute.strategy: {wanted} shares a model out between GPUs and there is one; set compute.gpusPerNode "
                "or compute.nodes, or use strategy: auto"
            )
        return wanted
    if processes == 1:
        return "single"
    if wanted == "auto" and demand is not None and can_be_parts(demand):
        micro = demand.least_micro_batch
        replica = train_breakdown(replace(demand, strategy="ddp", gpus=processes), micro)
        parts = train_breakdown(replace(demand, strategy=fsdp_of(demand.method), gpus=processes), micro)
        if fit(replica, memory_gib) != "Fits" and fit(parts, memory_gib) == "Fits":
            return "fsdp"
    return "ddp"


def can_be_parts(demand: Demand) -> bool:
    """Whether fsdp can train the demand: its weights and its optimiser can be cut as far as fsdp cuts them."""
    return demand.quantisation != "int8" and cuts_optimizer(demand.optimizer, "fsdp", demand.method)


def choose(compute: Compute, demand: Demand | None, memory_gib: float, processes: int) -> Choice:
    """The choice for a demand; None is one without GPUs or of an unknown shape.

    Activations are recomputed only when memory needs it: without, a step is up to a fifth faster (torchtune), but only
    if its micro-batch of rows of usual length still fills the GPU.

    Raises:
        PlanError: naming compute.strategy, when it cannot be had.
    """
    strategy = _strategy(compute, demand, memory_gib, processes)
    stage = compute.deepspeed.stage if compute.deepspeed is not None else 3
    offload = compute.deepspeed.offload if compute.deepspeed is not None else "none"
    if demand is None:
        return Choice(strategy, stage, offload)
    spread = replace(demand, strategy=memory_strategy(strategy, demand.method, stage), gpus=processes, offload=offload)
    keeps = replace(spread, checkpointing=False)
    asked = demand.asked_micro_batch
    if asked is not None:
        recomputes = fit(train_breakdown(keeps, asked), memory_gib) != "Fits"
        return Choice(strategy, stage, offload, asked, checkpointing=recomputes)
    most = largest_micro_batch(spread, memory_gib)
    without = largest_micro_batch(keeps, memory_gib)
    usual = min(demand.typical_row or demand.longest_row, demand.longest_row)
    filled = without * usual >= saturation_tokens(demand.method) or without >= most
    if filled and fit(train_breakdown(keeps, without), memory_gib) == "Fits":
        return Choice(strategy, stage, offload, without, checkpointing=False)
    return Choice(strategy, stage, offload, most)
