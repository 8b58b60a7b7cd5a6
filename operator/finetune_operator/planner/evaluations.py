"""How often training is evaluated. Pure arithmetic; hardware and memory have no say: a retry changes nothing."""

from __future__ import annotations

import math

from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.job.training import Training
from finetune_api.stages import ModelFacts
from finetune_operator.planner.fit import LARGEST_MICRO_BATCH
from finetune_operator.planner.gpus import MethodType, Range, known_gpus
from finetune_operator.planner.memory.inference import GENERATED_ROWS
from finetune_operator.planner.shape import UnknownShapeError, shape_of
from finetune_operator.planner.steps import Steps
from finetune_operator.planner.throughput import decode_step_seconds, training_tokens_per_second
from finetune_operator.planner.time import SCORING_SPEEDUP
from finetune_operator.planner.workload import SCORED_SEQUENCES, SEQUENCES, Workload

LARGEST_SHARE = 0.2
"""Of the time of steps and evaluations together, for the evaluations. Our choice."""
MOST_PER_EPOCH, FINEST_STEPS = 4, 50
"""However cheap they are: evaluations of an epoch, and steps between two where a quarter of an epoch is longer."""
FEWEST = 3
"""Evaluations of a run, even of a single epoch: with fewer there is no best one to speak of."""
REFERENCE_GPU = "A100-80"
"""At whose speeds steps and answers are compared, whatever the pool's: another pool trains the same."""
TYPICAL_PASSES = 256.0
"""Tokens of a forward pass that take as long as one token more of a batch of answers, for a model of unknown shape:
about those of an 8B with lora."""
ANSWER_SHARE = 0.5
"""Of evaluation.maxNewTokens, for the longest answer of a batch: untuned models use it all, tuned ones a part."""


def _middle(range_: Range) -> float:
    return math.sqrt(range_[0] * range_[1])


def decoded_token_passes(facts: ModelFacts, method: MethodType, micro_batch_tokens: float, mean_length: float) -> float:
    """Tokens of a forward pass that take as long as one token more of a batch of answers, on the reference GPU.

    Answers wait for kernels to be started and for the weights to be read, steps mostly for products: by the forecast's
    speeds some 90 tokens for a 70B with lora, 300 for an 8B and 900 for a 0.5B; more than that with qlora.

    Args:
        facts: of the base model.
        method: lora or qlora.
        micro_batch_tokens: what a GPU is given at once.
        mean_length: tokens of a row.
    """
    try:
        shape = shape_of(facts)
    except UnknownShapeError:
        return TYPICAL_PASSES
    gpu = next(gpu for gpu in known_gpus() if gpu.name == REFERENCE_GPU)
    trained = training_tokens_per_second(
        shape, gpu, method, gpus=1, nodes=1, micro_batch_tokens=micro_batch_tokens, mean_length=mean_length
    )
    return _middle(decode_step_seconds(shape, gpu, method)) * _middle(trained) * SCORING_SPEEDUP


def evaluation_cost_steps(spec: FineTuneJobSpec, work: Workload, facts: ModelFacts, method: MethodType) -> float:
    """Optimiser steps that one evaluation takes as long as: the loss of all validation rows, and some answers.

    Args:
        spec: of the job.
        work: what prepare counted.
        facts: of the base model.
        method: lora or qlora.
    """
    objective, answer = spec.method.objective, spec.evaluation.max_new_tokens
    length = max(1.0, work.mean_length)
    row = length * SEQUENCES[objective]
    step = spec.training.global_batch_size * row * SCORING_SPEEDUP
    scored = work.validation_rows * length * SCORED_SEQUENCES[objective]
    batches = math.ceil(min(work.validation_rows, spec.training.answered_rows(answer)) / GENERATED_ROWS)
    rows = min(spec.training.global_batch_size, LARGEST_MICRO_BATCH)
    decoded = batches * answer * ANSWER_SHARE * decoded_token_passes(facts, method, rows * row, length)
    return (scored + decoded) / step


def evaluation_interval(training: Training, steps: Steps, cost_steps: float) -> int:
    """Optimiser steps between evaluations: training.evalSteps, by default as many as `LARGEST_SHARE` pays for.

    At least one an epoch and three a run, at most four an epoch, and spread evenly. With extendTo there are as many as
    the bounds allow: the plateau rule compares them.

    Args:
        training: of the job.
        steps: how long training is.
        cost_steps: what an evaluation takes, in optimiser steps.
    """
    if isinstance(training.eval_steps, int):
        return min(training.eval_steps, steps.total)
    longest = _longest_interval(steps.total, max(FEWEST, math.ceil(steps.total / steps.per_epoch)))
    shortest = min(longest, max(1, min(FINEST_STEPS, steps.per_epoch // MOST_PER_EPOCH)))
    paid_for = round(cost_steps * (1 - LARGEST_SHARE) / LARGEST_SHARE, 6)
    if steps.extend_to is not None or paid_for <= shortest:
        return shortest
    evenly = math.ceil(steps.total / max(1, int(steps.total / paid_for)))
    return min(max(shortest, evenly), longest)


def _longest_interval(total: int, evaluations: int) -> int:
    """The longest interval that leaves at least so many evaluations of all steps, spread evenly where that goes."""
    if evaluations >= total:
        return 1
    return min(math.ceil(total / evaluations), math.ceil(total / (evaluations - 1)) - 1)
