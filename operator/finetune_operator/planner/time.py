"""How long the GPU stages take, as a range."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.stages import TrainPlan
from finetune_operator.planner.gpus import GPU, Range, loading_bytes_per_second
from finetune_operator.planner.memory.inference import GENERATED_ROWS, generated_rows
from finetune_operator.planner.shape import ModelShape
from finetune_operator.planner.throughput import decode_step_seconds, training_tokens_per_second
from finetune_operator.planner.workload import SCORED_SEQUENCES, SEQUENCES, Workload, answered_sets

SHORTEST_ANSWER_SHARE = 0.1
"""Share of evaluation.maxNewTokens that a batch of short answers takes."""
SCORING_SPEEDUP = 3.0
"""A forward pass alone, against a training step with recomputation: a third of the operations."""
START_S: Range = (15.0, 60.0)
"""Imports, CUDA and the first kernels."""


@dataclass(frozen=True)
class Timing:
    """Everything that times rest on."""

    spec: FineTuneJobSpec
    plan: TrainPlan
    shape: ModelShape
    gpu: GPU
    work: Workload

    @property
    def answered_rows(self) -> int:
        """Validation rows that are answered at every evaluation."""
        return min(self.work.validation_rows, self.spec.training.answered_rows(self.spec.evaluation.max_new_tokens))


def _loading(timing: Timing, times: int = 1) -> Range:
    slow, fast = loading_bytes_per_second()
    size = 2.0 * timing.shape.parameters * times
    return START_S[0] + size / fast, START_S[1] + size / slow


def _speed(timing: Timing, gpus: int, nodes: int) -> Range:
    return training_tokens_per_second(
        timing.shape,
        timing.gpu,
        timing.plan.method,
        gpus=gpus,
        nodes=nodes,
        micro_batch_tokens=timing.plan.micro_batch_size * timing.work.mean_length,
        mean_length=timing.work.mean_length,
        checkpointing=timing.plan.gradient_checkpointing,
    )


def planned_tokens(timing: Timing, steps: int | None = None) -> int:
    """Tokens of all optimiser steps, padding not counted."""
    sequences = SEQUENCES[timing.spec.method.objective]
    steps = timing.plan.total_steps if steps is None else steps
    return round(steps * timing.spec.training.global_batch_size * timing.work.mean_length * sequences)


def _scored_tokens(timing: Timing, steps: int) -> float:
    """Tokens of forward passes alone: validations, and what dpo and kto ask the model they start from."""
    plan, work, objective = timing.plan, timing.work, timing.spec.method.objective
    # Before the first step, every eval_steps, after the last, and once more for the kept adapter.
    validations = math.ceil(steps / plan.eval_steps) + 2
    passes = SCORED_SEQUENCES[objective]
    scored = float(validations * work.validation_rows * passes)
    if objective != "sft":
        scored += passes * (work.train_rows + work.validation_rows)
    if objective == "kto":
        scored += steps * timing.spec.training.global_batch_size
    return scored * work.mean_length


def train_seconds(timing: Timing) -> Range:
    """Training to the last step with its validations; at most to extendTo. Early stopping may end it sooner."""
    plan = timing.plan
    gpus = max(1, plan.nodes * plan.gpus_per_node)
    slow, fast = _speed(timing, gpus, plan.nodes)
    least, most = (
        planned_tokens(timing, steps) + _scored_tokens(timing, steps) / SCORING_SPEEDUP
        for steps in (plan.total_steps, plan.extend_to or plan.total_steps)
    )
    low, high = _loading(timing)
    answers = [
        (math.ceil(steps / plan.eval_steps) + 1) * _answer_steps(timing, timing.answered_rows, gpus)
        for steps in (plan.total_steps, plan.extend_to or plan.total_steps)
    ]
    step = decode_step_seconds(timing.shape, timing.gpu, plan.method)
    return (
        low + least / fast + answers[0] * SHORTEST_ANSWER_SHARE * step[0],
        high + most / slow + answers[1] * step[1],
    )


def _rows_of_a_batch(timing: Timing) -> int:
    new = timing.spec.evaluation.max_new_tokens
    return max(1, generated_rows(timing.shape, GENERATED_ROWS, round(timing.work.mean_length), new))


def _answer_steps(timing: Timing, rows: int, processes: int) -> int:
    """Decoding steps to answer rows to the full length: fixed batches, shared out between the processes."""
    batches = math.ceil(rows / _rows_of_a_batch(timing))
    return math.ceil(batches / max(1, processes)) * timing.spec.evaluation.max_new_tokens


def _answering(timing: Timing, sets: int, models: int) -> Range:
    """Time to answer the test split `sets` times and score it, with `models` loads, on all GPUs of one pod."""
    work = timing.work
    step = decode_step_seconds(timing.shape, timing.gpu, timing.plan.method)
    copies = timing.plan.gpus_per_node // timing.plan.judging_gpus
    processes = max(1, min(copies, math.ceil(work.test_rows / _rows_of_a_batch(timing))))
    steps = _answer_steps(timing, work.test_rows, processes) * sets
    # Replicas that send each other nothing: unlike in training, twice the processes are twice as fast.
    slow, fast = (processes * speed for speed in _speed(timing, 1, 1))
    scored = (work.test_rows * sets + work.out_of_domain_rows * models) * work.mean_length / SCORING_SPEEDUP
    low, high = _loading(timing, models)
    return (
        low + steps * SHORTEST_ANSWER_SHARE * step[0] + scored / fast,
        high + steps * step[1] + scored / slow,
    )


def stage_seconds(timing: Timing) -> Mapping[str, Range]:
    """Seconds of each GPU stage."""
    both = timing.plan.method == "qlora" and timing.plan.judge_both_forms
    merges = both or timing.spec.output.served_as == "merged"
    return {
        "baseline": _answering(timing, answered_sets(timing.spec), 1),
        "train": train_seconds(timing),
        "evaluate": _answering(timing, 2 if both else 1, 1 + int(both) + int(merges)),
    }
