"""spec.training: the optimisation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import Contract, Rule

ANSWER_TOKENS, FEWEST_ANSWERS, MOST_ANSWERS = 4096, 8, 64
"""What training.validationSamples is by default: by generated tokens of an evaluation, between so many rows."""

HOW_NOT_WHAT = frozenset({"microBatchSize", "gradientCheckpointing", "torchCompile", "checkpoints"})
"""Fields that change how a step is computed or what is kept, not what is learned: neither a version nor a checkpoint
depends on them."""


def answered_rows(validation_samples: int | None, max_new_tokens: int) -> int:
    """Validation rows that are answered at every evaluation: as asked, else fewer the longer an answer may be."""
    if validation_samples is not None:
        return validation_samples
    return max(FEWEST_ANSWERS, min(MOST_ANSWERS, ANSWER_TOKENS // max_new_tokens))


class EarlyStopping(Contract):
    """When to stop because validation no longer improves."""

    patience: Annotated[
        int,
        Field(
            description="Evaluations without improvement before training stops. 0 turns it off. Default 3.",
            ge=0,
            le=100,
        ),
    ] = 3
    minimum_delta: Annotated[
        float,
        Field(description="Smallest drop of the validation loss that counts as improvement. Default 0.", ge=0, le=10),
    ] = 0.0


class Checkpoints(Contract):
    """What is kept of a run's checkpoints. Every evaluation saves one, and so does a stop."""

    keep: Annotated[
        int,
        Field(
            description="Newest checkpoints that are kept besides the best one. Range 1-100, default 2.", ge=1, le=100
        ),
    ] = 2
    every_steps: Annotated[
        int | None,
        Field(
            description="Save at every so many optimiser steps too, for runs with few evaluations. Default: after "
            "fifteen minutes without a checkpoint.",
            ge=1,
            le=10_000_000,
        ),
    ] = None


Optimizer = Literal[
    "adamw_torch_fused",
    "adamw_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "lion",
    "lion_8bit",
    "paged_lion_8bit",
    "adafactor",
]
Scheduler = Literal["cosine", "cosineWithMinLr", "linear", "constant", "constantWithWarmup", "wsd"]
OPEN_ENDED: tuple[Scheduler, ...] = ("constant", "constantWithWarmup", "wsd")
"""Schedules that do not need to know the last step before it is near."""
BestBy = Literal["validationLoss", "metric", "rewardAccuracy"]


class Training(Contract):
    """Hyper-parameters."""

    epochs: Annotated[
        float | None,
        Field(
            description="Passes over the training mix. Range 0.01-100. Default: by method.objective, 3 for sft, 1 for "
            "dpo and kto; status.plan.epochs has it.",
            ge=0.01,
            le=100,
        ),
    ] = None
    max_steps: Annotated[
        int | None, Field(description="Upper bound on optimiser steps, whatever epochs says.", ge=1, le=10_000_000)
    ] = None
    extend_to: Annotated[
        int | None,
        Field(
            description="Plateau rule: a training that reaches maxSteps while its validation loss still falls goes on "
            "to at most so many steps, and ends at the first plateau. epochs stays a bound. Default: it ends at "
            "maxSteps.",
            ge=2,
            le=10_000_000,
        ),
    ] = None
    learning_rate: Annotated[
        float | None,
        Field(
            description="Peak learning rate. Range 1e-7 to 0.1. Default: by method.objective, 2e-4 for sft (QLoRA "
            "paper, 7B-13B), 5e-6 for dpo and kto (TRL, alignment-handbook); for lion a fifth of it (Chen et al. "
            "2023: a third to a tenth of AdamW's). status.plan.learningRate has it.",
            ge=1e-7,
            le=0.1,
        ),
    ] = None
    optimizer: Annotated[
        Optimizer,
        Field(
            description="`adamw_torch_fused` (default); `adamw_8bit` and `lion_8bit` keep their states in 8 bit; "
            "`paged_` ones move them to host memory when the GPU's runs out; `lion`; `adafactor` keeps row and column "
            "sums. An adapter is small: AdamW's states are seldom what memory is short of."
        ),
    ] = "adamw_torch_fused"
    weight_decay: Annotated[
        float,
        Field(description="Decoupled weight decay of the adapter. Range 0-1, default 0 (QLoRA paper).", ge=0, le=1),
    ] = 0.0
    max_grad_norm: Annotated[
        float,
        Field(
            description="Gradients of a step are scaled down to this norm. 0 turns it off. Range 0-1000, default 1.",
            ge=0,
            le=1000,
        ),
    ] = 1.0
    scheduler: Annotated[
        Scheduler,
        Field(
            description="Course of the learning rate after the warm-up: `cosine` to 0 (default), `cosineWithMinLr` to "
            "a tenth of the peak, `linear` to 0, `constantWithWarmup`, `constant` (no warm-up), `wsd` (warm-up, "
            "stable, and decay over the last fifth of maxSteps; Hägele et al. 2024)."
        ),
    ] = "cosine"
    warmup_ratio: Annotated[
        float,
        Field(description="Share of the steps with a rising learning rate. Range 0-0.5, default 0.1.", ge=0, le=0.5),
    ] = 0.1
    global_batch_size: Annotated[
        int,
        Field(
            description="Examples per optimiser step over all GPUs, default 16. Packing and GPU count never change it.",
            ge=1,
            le=65536,
        ),
    ] = 16
    micro_batch_size: Annotated[
        int | None,
        Field(
            description="Examples per GPU and forward pass; gradients are accumulated up to globalBatchSize, which it "
            "must divide evenly. Where the GPU's memory does not hold so many, fewer are taken and a finding says so. "
            "Default: the largest that fits.",
            ge=1,
            le=1024,
        ),
    ] = None
    gradient_checkpointing: Annotated[
        Literal["auto", "enabled", "disabled"],
        Field(
            description="Recompute activations in the backward pass: less memory, about a fifth slower. `auto` "
            "(default): where memory needs it."
        ),
    ] = "auto"
    torch_compile: Annotated[
        Literal["auto", "enabled", "disabled"],
        Field(
            description="Compile each transformer block with torch.compile before step 1; strategies single and ddp. "
            "`auto` (default): on GPUs, where rows are packed, the forecast of the training is an hour or more and the "
            "pool's image has a compiler; kept where it is faster. `enabled` refuses where it cannot be done. "
            "status.plan and results.train say what was done and why."
        ),
    ] = "auto"
    precision: Annotated[
        Literal["auto", "bf16", "fp32"],
        Field(
            description="Arithmetic of the forward pass; what is learned is kept in fp32. `auto` (default): bf16 on "
            "GPUs, fp32 on CPUs. qlora always computes in bf16."
        ),
    ] = "auto"
    max_length: Annotated[
        int,
        Field(
            description="Longest example in tokens; longer ones are cut from the left of the prompt. Default 2048.",
            ge=16,
            le=1_048_576,
        ),
    ] = 2048
    packing: Annotated[
        Literal["auto", "enabled", "disabled"],
        Field(
            description="Several examples per row, without attention between them. `auto` (default) packs from 100 "
            "optimiser steps on a GPU; `enabled` keeps examples per step by converting the batch size."
        ),
    ] = "auto"
    eval_steps: Annotated[
        int | str,
        Field(
            description="Optimiser steps between evaluations, or `auto` (default): so many that evaluations take at "
            "most a fifth of the training's time by forecast, but at least one an epoch and three a run, and at most "
            "four an epoch or one in 50 steps. Always before the first step and after the last. Every evaluation saves "
            "a checkpoint.",
            json_schema_extra={"x-kubernetes-int-or-string": True},
        ),
    ] = "auto"
    validation_samples: Annotated[
        int | None,
        Field(
            description="Validation rows that are answered at every evaluation, always the same ones, for the task's "
            "metrics, repetition and truncation. 0 answers none. Range 0-1000. Default: what 4,096 generated tokens "
            "allow (evaluation.maxNewTokens each), at least 8 and at most 64.",
            ge=0,
            le=1000,
        ),
    ] = None
    early_stopping: Annotated[EarlyStopping, Field(description="When to stop early.")] = EarlyStopping()
    best_by: Annotated[
        BestBy,
        Field(
            description="What decides which checkpoint is kept and when training stops early: `validationLoss` "
            "(default); `metric`, the first of evaluation.metrics, on the validation rows that are answered; or "
            "`rewardAccuracy` of dpo and kto: the share of rows whose better answer gained on the worse."
        ),
    ] = "validationLoss"
    checkpoints: Annotated[Checkpoints, Field(description="What is kept to resume from.")] = Checkpoints()
    seed: Annotated[
        int, Field(description="Seed of split, order and initialisation. Default 42.", ge=0, le=2**31 - 1)
    ] = 42

    def answered_rows(self, max_new_tokens: int) -> int:
        """Validation rows that are answered at every evaluation, where there are so many."""
        return answered_rows(self.validation_samples, max_new_tokens)

    RULES = (
        Rule(
            cel="type(self.evalSteps) == int ? self.evalSteps >= 1 && self.evalSteps <= 10000000 "
            ": self.evalSteps == 'auto'",
            message="training.evalSteps is neither 'auto' nor a number of steps; write auto, or a whole number from 1 "
            "to 10000000 without quotes",
            holds=lambda t: (
                1 <= t.eval_steps <= 10_000_000 if isinstance(t.eval_steps, int) else t.eval_steps == "auto"
            ),
            field_path="evalSteps",
        ),
        Rule(
            cel="self.bestBy != 'metric' || !has(self.validationSamples) || self.validationSamples > 0",
            message="training.bestBy: metric needs answers; leave validationSamples out, or use validationLoss",
            holds=lambda t: t.best_by != "metric" or t.validation_samples != 0,
            field_path="bestBy",
        ),
        Rule(
            cel="!has(self.extendTo) || (has(self.maxSteps) && self.extendTo > self.maxSteps)",
            message="training.extendTo goes on from maxSteps; set maxSteps to a smaller number of steps",
            holds=lambda t: t.extend_to is None or (t.max_steps is not None and t.extend_to > t.max_steps),
            field_path="extendTo",
        ),
        Rule(
            cel="!has(self.extendTo) || self.scheduler in ['constant', 'constantWithWarmup', 'wsd']",
            message="training.extendTo needs a schedule that does not end at maxSteps; set scheduler to wsd, "
            "constantWithWarmup or constant",
            holds=lambda t: t.extend_to is None or t.scheduler in OPEN_ENDED,
            field_path="extendTo",
        ),
        Rule(
            cel="!has(self.microBatchSize) || self.globalBatchSize % self.microBatchSize == 0",
            message="training.microBatchSize does not divide globalBatchSize; use a divisor of it, or leave it out",
            holds=lambda t: t.micro_batch_size is None or t.global_batch_size % t.micro_batch_size == 0,
            field_path="microBatchSize",
        ),
    )
