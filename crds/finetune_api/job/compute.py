"""spec.compute: where it runs and what it may cost."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import Contract, Rule
from finetune_api.common import Duration, Name, PriorityName


class DeepSpeed(Contract):
    """ZeRO: what is cut into parts, and what is kept in host memory."""

    stage: Annotated[
        int,
        Field(
            description="2: gradients and optimiser in parts, the weights whole. 3 (default): the weights too.",
            ge=2,
            le=3,
        ),
    ] = 3
    offload: Annotated[
        Literal["none", "optimizer", "parameters"],
        Field(
            description="What is kept in host memory: `none` (default), `optimizer`, or `parameters` (the optimiser "
            "and, with stage 3, the weights). Slower; for models that do not fit otherwise."
        ),
    ] = "none"

    RULES = (
        Rule(
            cel="self.offload != 'parameters' || self.stage == 3",
            message="deepspeed.offload parameters needs the weights in parts; set stage: 3, or use offload: optimizer",
            holds=lambda d: d.offload != "parameters" or d.stage == 3,
            field_path="offload",
        ),
    )


class Compute(Contract):
    """GPUs, queue and limits."""

    pool: Annotated[Name | None, Field(description="Name of a GPUPool. Default: the pool marked `default`.")] = None
    nodes: Annotated[
        int, Field(description="Pods of the training gang, one per node. Range 1-64, default 1.", ge=1, le=64)
    ] = 1
    gpus_per_node: Annotated[
        int | None,
        Field(description="GPUs of each training pod. Default: 1, or 0 on a pool without GPUs.", ge=0, le=16),
    ] = None
    strategy: Annotated[
        Literal["auto", "single", "ddp", "fsdp", "deepspeed"],
        Field(
            description="`single`: one process. `ddp`: a full replica per GPU. `fsdp`: weights, gradients and "
            "optimiser in parts (qlora: the base in parts). `deepspeed`: ZeRO, see `deepspeed`. `auto` (default): "
            "single on one GPU, on several ddp where the model fits on one, else fsdp."
        ),
    ] = "auto"
    deepspeed: Annotated[DeepSpeed | None, Field(description="Settings of `strategy: deepspeed`.")] = None
    queue: Annotated[Name | None, Field(description="Kueue LocalQueue in the job's namespace. Default: no queue.")] = (
        None
    )
    priority_class: Annotated[
        PriorityName | None,
        Field(
            description="Kueue WorkloadPriorityClass: who goes first in the queue and may preempt whom. Default: none, "
            "which is priority 0."
        ),
    ] = None
    max_cost: Annotated[
        float | None,
        Field(
            description="Most the run may cost, in the pool's currency. Training stops early enough to evaluate and "
            "publish what exists.",
            gt=0,
            le=1e9,
        ),
    ] = None
    max_duration: Annotated[
        Duration,
        Field(
            description="Longest time with pods running, for example `24h` (default) or `1h30m`. Queued and "
            "suspended time does not count."
        ),
    ] = "24h"
    max_retries: Annotated[
        int,
        Field(
            description="Attempts beyond the first per stage; preemption and node loss do not count. Default 3.",
            ge=0,
            le=20,
        ),
    ] = 3

    @property
    def cuts_weights(self) -> bool:
        """Whether the strategy asked for keeps a part of the base's weights per process."""
        zero_3 = self.strategy == "deepspeed" and (self.deepspeed or DeepSpeed()).stage == 3
        return self.strategy == "fsdp" or zero_3

    RULES = (
        Rule(
            cel="!has(self.priorityClass) || has(self.queue)",
            message="compute.priorityClass orders the jobs of a Kueue queue; set compute.queue, or leave it out",
            holds=lambda c: c.priority_class is None or c.queue is not None,
            field_path="priorityClass",
        ),
        Rule(
            cel="self.maxDuration.matches('[1-9]')",
            message="compute.maxDuration is zero; write for example 24h or 1h30m",
            holds=lambda c: any(digit in c.max_duration for digit in "123456789"),
            field_path="maxDuration",
        ),
        Rule(
            cel="!has(self.deepspeed) || self.strategy == 'deepspeed'",
            message="compute.deepspeed belongs to strategy deepspeed; set strategy: deepspeed, or leave it out",
            holds=lambda c: c.deepspeed is None or c.strategy == "deepspeed",
            field_path="deepspeed",
        ),
        Rule(
            cel="self.strategy != 'single' || (self.nodes == 1 && (!has(self.gpusPerNode) || self.gpusPerNode <= 1))",
            message="strategy single means one process; set nodes: 1 and gpusPerNode: 1, or use strategy auto or ddp",
            holds=lambda c: c.strategy != "single" or (c.nodes == 1 and (c.gpus_per_node or 0) <= 1),
            field_path="strategy",
        ),
    )
