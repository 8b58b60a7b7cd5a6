"""How often training is evaluated. Pure arithmetic; hardware and memory have no say: a retry changes nothing."""

from __future__ import annotations

import math

from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.job.training import Training
from finetune_operator.planner.memory.inference import GENERATED_ROWS
from finetune_operator.planner.steps import Steps
from finetune_operator.planner.time import SCORING_SPEEDUP
from finetune_operator.planner.workload import SCORED_SEQUENCES, SEQUENCES, Workload

LARGEST_SHARE = 0.2
"""Of the time of steps and evaluations together, for the evaluations. Our choice."""
MOST_PER_EPOCH, FINEST_STEPS = 4, 50
"""However cheap they are: evaluations of an epoch, and steps between two where a quarter of an epoch is longer."""
FEWEST = 3
"""Evaluations of a run, even of a single epoch: with fewer there is no best one to speak of."""
DECODED_TOKEN_PASSES = 256.0
"""Tokens of a forward pass that take as long as one token more of a batch of answers. By the forecast's own speeds 65
(70B) to 1,100 (0.5B), 215 to 277 for an 8B with lora; a 2-layer model on a CPU: about 300."""
ANSWER_SHARE = 0.5
"""Of evaluation.maxNewTokens, for the longest answer of a batch: untuned models use it all, tuned ones a part."""


def evaluation_cost_steps(spec: FineTuneJobSpec, work: Workload) -> float:
    """Optimiser steps that one evaluation takes as long as: the loss of all validation rows, and some answers.

    Args:
        spec: of the job.
        work: what prepare counted.
    """
    objective, answer = spec.method.objective, spec.evaluation.max_new_tokens
    length = max(1.0, work.mean_length)
    step = spec.training.global_batch_size * length * SEQUENCES[objective] * SCORING_SPEEDUP
    scored = work.validation_rows * length * SCORED_SEQUENCES[objective]
    batches = math.ceil(min(work.validation_rows, spec.training.answered_rows(answer)) / GENERATED_ROWS)
    return (scored + batches * answer * ANSWER_SHARE * DECODED_TOKEN_PASSES) / step


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
