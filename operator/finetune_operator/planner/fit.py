"""Does it fit: the memory of every stage against a GPU, and the largest micro-batch that does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from finetune_api.job.forecast import Fit, Moment
from finetune_api.job.training import Optimizer, answered_rows
from finetune_api.stages import Offload
from finetune_operator.planner.gpus import MethodType
from finetune_operator.planner.memory.adapter import adapter_parameters
from finetune_operator.planner.memory.attention import Attention
from finetune_operator.planner.memory.breakdown import GIB, Breakdown
from finetune_operator.planner.memory.inference import InferenceSetup, inference_memory, merge_memory
from finetune_operator.planner.memory.loading import loading_memory
from finetune_operator.planner.memory.sharding import Strategy
from finetune_operator.planner.memory.spreading import spreads
from finetune_operator.planner.memory.training import (
    TrainingSetup,
    answering_memory,
    reference_memory,
    training_memory,
    validation_memory,
)
from finetune_operator.planner.memory.weights import Quantisation
from finetune_operator.planner.shape import ModelShape

USABLE_SHARE = 0.98
"""Of a GPU's nominal memory; torch sees 79.15 of an A100's 80 GiB and 23.6 of an RTX 4090's 24."""
LARGEST_OVERESTIMATE = 0.20
"""Read off the published rows, calibration and blind: none that the runner can run is forecast higher than this above
what was measured (docs/forecast.md). Only what exceeds even that is refused."""
LARGEST_MICRO_BATCH = 16


@dataclass(frozen=True)
class Offered:
    """What a pool has."""

    memory_gib: float
    """Of one GPU."""
    gpus_per_node: int
    most_gpus: int
    most_nodes: int
    global_batch: int = 0
    """Examples of a step, which all GPUs share evenly; 0: any number of GPUs will do."""

    def shares(self, micro_batch: int) -> list[int]:
        """Numbers of GPUs worth a look that the pool has and that share a step."""
        found = []
        for gpus in (2, 4, 8, 16, 32, 64):
            nodes = gpus // min(gpus, self.gpus_per_node)
            if gpus <= self.most_gpus and nodes <= self.most_nodes and self.global_batch % (gpus * micro_batch) == 0:
                found.append(gpus)
        return found


@dataclass(frozen=True)
class Demand:
    """All of a job that decides on GPU memory."""

    shape: ModelShape
    method: MethodType
    rank: int
    target_modules: str
    dropout: float
    longest_row: int
    longest_prompt: int
    max_new_tokens: int
    validation_rows: int
    test_rows: int
    packed: bool
    serves_merged: bool
    strategy: Strategy = "single"
    gpus: int = 1
    offload: Offload = "none"
    judging_gpus: int = 1
    """GPUs over which one copy is spread in baseline and evaluate."""
    bits: int = 4
    """Of qlora's base."""
    full_precision: bool = False
    """Whether lora's base is in fp32."""
    dora: bool = False
    optimizer: Optimizer = "adamw_torch_fused"
    sequences: int = 1
    """Sequences of an example: 2 for dpo."""
    asks_reference: bool = False
    """Whether training asks for log-probabilities of answers: dpo and kto."""
    checkpointing: bool = True
    attention: Attention = "sdpa"
    few_shot: int = 0
    """Examples before a prompt that is answered; longest_prompt has them."""
    typical_row: int = 0
    """Tokens of such an example."""
    prompt_room: int = 0
    """Most tokens of a prompt, by the model's context; 0: not known."""
    validation_samples: int | None = 0
    """Validation rows that are answered during training; None: by the length of an answer."""
    asked_micro_batch: int | None = None
    """training.microBatchSize."""

    @property
    def answered_rows(self) -> int:
        """Validation rows that are answered at every evaluation."""
        return min(answered_rows(self.validation_samples, self.max_new_tokens), self.validation_rows)

    @property
    def least_micro_batch(self) -> int:
        """The micro-batch that has to fit: the one that is asked for, else 1."""
        return self.asked_micro_batch or 1

    @property
    def quantisation(self) -> Quantisation:
        """How the runner loads the base."""
        if self.method == "qlora":
            return "int8" if self.bits == 8 else "nf4-double"
        return "fp32" if self.full_precision else "none"


def training_setup(demand: Demand, micro_batch: int) -> TrainingSetup:
    """One GPU's part of a step."""
    return TrainingSetup(
        shape=demand.shape,
        quantisation=demand.quantisation,
        rank=demand.rank,
        micro_batch=micro_batch,
        sequence_length=demand.longest_row,
        target_modules=demand.target_modules,
        dropout=demand.dropout,
        packed=demand.packed,
        strategy=demand.strategy,
        gpus=demand.gpus,
        offload=demand.offload,
        dora=demand.dora,
        optimizer=demand.optimizer,
        sequences=demand.sequences,
        checkpointing=demand.checkpointing,
        attention=demand.attention,
    )


def train_moments(demand: Demand, micro_batch: int) -> Mapping[Moment, Breakdown]:
    """Peaks of the train stage one after the other: loading, a step, and what is done between steps."""
    setup = training_setup(demand, micro_batch)
    moments: dict[Moment, Breakdown] = {"loading": loading_memory(setup), "step": training_memory(setup)}
    if demand.asks_reference:
        moments["reference"] = reference_memory(setup, demand.longest_row)
    else:
        moments["validation"] = validation_memory(setup, demand.validation_rows, demand.longest_row)
    if demand.answered_rows:
        moments["answers"] = answering_memory(setup, demand.answered_rows, demand.longest_row, demand.max_new_tokens)
    return moments


def train_breakdown(demand: Demand, micro_batch: int) -> Breakdown:
    """Peak of the train stage: its largest moment."""
    return max(train_moments(demand, micro_batch).values(), key=lambda peak: peak.device_bytes)


def _inference(demand: Demand, *, adapted: bool) -> InferenceSetup:
    targets = demand.shape.targets(demand.target_modules)
    return InferenceSetup(
        shape=demand.shape,
        quantisation=demand.quantisation,
        rows=demand.test_rows,
        longest_prompt=demand.longest_prompt if not adapted else demand.longest_row,
        max_new_tokens=demand.max_new_tokens,
        longest_row=demand.longest_row,
        adapter_parameters=adapter_parameters(demand.shape, demand.rank, targets, dora=demand.dora) if adapted else 0,
        gpus=demand.judging_gpus,
        attention=demand.attention,
    )


def merge_breakdown(demand: Demand) -> Breakdown:
    """Peak of making and judging the merged form."""
    return merge_memory(_inference(demand, adapted=True))


def judging_memory(demand: Demand, *, merges: bool) -> Mapping[str, Breakdown]:
    """Memory of one GPU in the stages that ask and score a model."""
    stages = {
        "baseline": inference_memory(_inference(demand, adapted=False)),
        "evaluate": inference_memory(_inference(demand, adapted=True)),
    }
    return stages | ({"merge": merge_breakdown(demand)} if merges else {})


def stage_memory(demand: Demand, micro_batch: int, *, merges: bool) -> Mapping[str, Breakdown]:
    """Memory of one GPU in every stage that holds one, in their order."""
    judging = dict(judging_memory(demand, merges=merges))
    return {"baseline": judging.pop("baseline"), "train": train_breakdown(demand, micro_batch), **judging}


def judging_gpus_for(demand: Demand, memory_gib: float, gpus_per_node: int) -> int:
    """Fewest GPUs of a pod over which one copy fits in baseline and evaluate: a divisor; the most when none is enough.

    Fewer are faster: the rest hold copies of their own, while the GPUs of one copy wait for each other.
    """
    for gpus in range(1, gpus_per_node + 1):
        if gpus_per_node % gpus == 0 and spreads(demand.shape, gpus):
            stages = judging_memory(replace(demand, judging_gpus=gpus), merges=demand.serves_merged)
            if worst_fit(stages, memory_gib) == "Fits":
                return gpus
    return max(gpus for gpus in range(1, max(1, gpus_per_node) + 1) if spreads(demand.shape, gpus))


def usable_bytes(memory_gib: float) -> float:
    """What one GPU can give."""
    return memory_gib * GIB * USABLE_SHARE


def fit(breakdown: Breakdown, memory_gib: float) -> Fit:
    """Fits, Tight (within the forecast's error) or DoesNotFit (not even if the forecast is too high by its worst)."""
    usable = usable_bytes(memory_gib)
    if breakdown.device_bytes <= usable:
        return "Fits"
    return "DoesNotFit" if breakdown.least_bytes / (1 + LARGEST_OVERESTIMATE) > usable else "Tight"


def worst_fit(stages: Mapping[str, Breakdown], memory_gib: float) -> Fit:
    """The verdict on all stages together."""
    order: tuple[Fit, ...] = ("Fits", "Tight", "DoesNotFit")
    return max((fit(breakdown, memory_gib) for breakdown in stages.values()), key=order.index)


def largest_micro_batch(demand: Demand, memory_gib: float) -> int:
    """Largest power of two that fits; 1 when none does."""
    micro = LARGEST_MICRO_BATCH
    while micro > 1 and fit(train_breakdown(demand, micro), memory_gib) != "Fits":
        micro //= 2
    return micro


def fsdp_of(method: MethodType) -> Strategy:
    """What the runner's fsdp does with a method (training/strategies/fsdp.py)."""
    return "fsdpBase" if method == "qlora" else "fsdp2"


def sharded_gpus(demand: Demand, offered: Offered) -> int | None:
    """Fewest GPUs with which every stage fits, training under FSDP; None when even all that are offered do not."""
    for gpus in offered.shares(demand.least_micro_batch):
        per_node = min(gpus, offered.gpus_per_node)
        # Neither the strategy nor the offload of a job that asked for DeepSpeed is kept.
        strategy = fsdp_of(demand.method)
        spread = replace(demand, strategy=strategy, offload="none", gpus=gpus, judging_gpus=per_node)
        stages = stage_memory(spread, demand.least_micro_batch, merges=demand.serves_merged)
        if worst_fit(stages, offered.memory_gib) == "Fits":
            return gpus
    return None
