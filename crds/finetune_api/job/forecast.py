"""status.forecast: what the run will need, computed when Planned; measurements join it as they come."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import Contract

ForecastStage = Literal["baseline", "train", "evaluate", "merge"]
Moment = Literal["loading", "step", "validation", "reference", "answers"]
Fit = Literal["Fits", "Tight", "DoesNotFit", "Unknown"]


class MemoryShare(Contract):
    """One component of a GPU's memory."""

    component: Annotated[
        str,
        Field(
            description="weights, adapter, gradients, optimiser, masterCopy, activations, recomputation, "
            "loading, head, attentionMask, attentionScores, keyValueCache, dequantisation, communication, "
            "merge, fragmentation or context.",
            max_length=32,
        ),
    ]
    gib: Annotated[float, Field(description="Its share in GiB.")]


class MomentForecast(Contract):
    """What training needs of one GPU at one of its moments."""

    moment: Annotated[
        Moment,
        Field(
            description="loading: the model is read and cut into parts; step: an optimiser step, what published "
            "figures of training measure; validation: the loss of validation rows; reference: log-probabilities that "
            "dpo and kto ask for; answers: validation rows that are answered."
        ),
    ]
    tensors_gib: Annotated[float, Field(description="What tensors need: torch.cuda.max_memory_allocated, in GiB.")]
    reserved_gpu_memory_gib: Annotated[
        float, Field(description="What PyTorch reserves for them: torch.cuda.max_memory_reserved, in GiB.")
    ]
    gpu_memory_gib: Annotated[
        float, Field(description="What the GPU must have: the CUDA context and NCCL's buffers included, in GiB.")
    ]


class StageForecast(Contract):
    """What one GPU stage needs. `merge` is the part of evaluate that loads the merged model."""

    stage: Annotated[ForecastStage, Field(description="baseline, train, evaluate or merge.")]
    gpu_memory_gib: Annotated[float, Field(description="Memory of one GPU in GiB, the CUDA context included.")]
    reserved_gpu_memory_gib: Annotated[
        float, Field(description="The part PyTorch reserves: what results.train.peakMemoryBytes measures.")
    ]
    components: Annotated[
        list[MemoryShare], Field(description="The parts of gpuMemoryGib, largest first.", max_length=16)
    ] = Field(default_factory=list)
    moments: Annotated[
        list[MomentForecast],
        Field(description="Of stage train: its moments, one after the other; the largest counts.", max_length=4),
    ] = Field(default_factory=list)
    seconds_low: Annotated[float | None, Field(description="Shortest likely duration.")] = None
    seconds_high: Annotated[float | None, Field(description="Longest likely duration.")] = None
    measured_gpu_memory_gib: Annotated[
        float | None,
        Field(description="Peak that PyTorch reserved on one GPU, measured; compare with reservedGpuMemoryGib."),
    ] = None
    measured_seconds: Annotated[float | None, Field(description="Duration of the stage's work, measured.")] = None


class Forecast(Contract):
    """Forecast of a run. Absent numbers are unknown; docs/forecast.md has method, accuracy and limits."""

    fit: Annotated[
        Fit,
        Field(
            description="Fits; Tight: within the forecast's error of the GPU's memory; DoesNotFit: refused, for GPU or "
            "host memory; Unknown: no GPU, or a model whose shape is not known."
        ),
    ]
    gpu_memory_gib: Annotated[
        float | None, Field(description="Largest need of a stage for one GPU, in GiB, the CUDA context included.")
    ] = None
    available_gpu_memory_gib: Annotated[float | None, Field(description="What one GPU of the pool can give.")] = None
    measured_gpu_memory_gib: Annotated[
        float | None,
        Field(
            description="Peak that training reserved, measured; compare with reservedGpuMemoryGib of stage train. On "
            "a CPU: see measuredHostMemoryGib."
        ),
    ] = None
    host_memory_gib: Annotated[float | None, Field(description="Memory of the largest pod, in GiB.")] = None
    measured_host_memory_gib: Annotated[
        float | None, Field(description="Largest resident set of the training process on a CPU, in GiB.")
    ] = None
    disk_gib: Annotated[float | None, Field(description="Scratch disk of the largest pod, in GiB.")] = None
    stages: Annotated[list[StageForecast], Field(description="Per GPU stage.", max_length=8)] = Field(
        default_factory=list
    )
    train_tokens: Annotated[int, Field(description="Tokens of all epochs, padding not counted.")] = 0
    train_seconds_low: Annotated[float | None, Field(description="Shortest likely training.")] = None
    train_seconds_high: Annotated[float | None, Field(description="Longest likely training.")] = None
    measured_train_seconds: Annotated[float | None, Field(description="Duration of the last training attempt.")] = None
    cost_low: Annotated[float | None, Field(description="Lowest likely cost of all GPU stages.")] = None
    cost_high: Annotated[float | None, Field(description="Highest likely cost of all GPU stages.")] = None
    currency: Annotated[str, Field(description="Of the costs; empty when the pool has no price.", max_length=3)] = ""
    minimum_detectable_gain: Annotated[
        float | None,
        Field(description="Smallest gain of the primary metric that the test rows can tell from chance, at worst."),
    ] = None
    gpu_model: Annotated[str, Field(description="GPU that the times rest on; empty when unknown.", max_length=64)] = ""
    notes: Annotated[
        list[str], Field(description="What to know about these numbers, and what would help.", max_length=8)
    ] = Field(default_factory=list)
