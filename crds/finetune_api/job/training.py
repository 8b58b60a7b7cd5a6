"""spec.training: the optimisation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import Contract, Rule


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


class Training(Contract):
    """Hyper-parameters."""

    epochs: Annotated[
        float, Field(description="Passes over the training mix. Range 0.01-100, default 3.", ge=0.01, le=100)
    ] = 3.0
    max_steps: Annotated[
        int | None, Field(description="Upper bound on optimiser steps, whatever epochs says.", ge=1, le=10_000_000)
    ] = None
    learning_rate: Annotated[
        float,
        Field(
            description="Peak learning rate, cosine decay. Range 1e-7 to 0.1, default 2e-4 (QLoRA paper, 7B-13B).",
            ge=1e-7,
            le=0.1,
        ),
    ] = 2e-4
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
            description="Optimiser steps between evaluations, or `auto` (default): min(50, a quarter epoch), also "
            "before the first step and after the last. Every evaluation saves a checkpoint.",
            json_schema_extra={"x-kubernetes-int-or-string": True},
        ),
    ] = "auto"
    validation_samples: Annotated[
        int | None,
        Field(
            description="Validation rows that are answered at every evaluation, always the same ones, for the task's "
            "metrics, repetition and truncation. 0 answers none. Range 0-1000. Default: as many as cost at most 4,096 "
            "generated tokens (evaluation.maxNewTokens each), at most 64.",
            ge=0,
            le=1000,
        ),
    ] = None
    early_stopping: Annotated[EarlyStopping, Field(description="When to stop early.")] = EarlyStopping()
    seed: Annotated[
        int, Field(description="Seed of split, order and initialisation. Default 42.", ge=0, le=2**31 - 1)
    ] = 42

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
    )
