"""How often training is evaluated by default: a bounded share of its time, but often enough to find the best step."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.job.training import Training
from finetune_api.stages import ModelFacts
from finetune_operator.planner.evaluations import (
    LARGEST_SHARE,
    decoded_token_passes,
    evaluation_cost_steps,
    evaluation_interval,
)
from finetune_operator.planner.families import facts_of_shape
from finetune_operator.planner.steps import Steps, plan_steps
from finetune_operator.planner.workload import Workload
from tests.decide.world import job_dict


def interval(training: dict[str, Any], examples: int, cost_steps: float) -> int:
    settings = Training.from_wire(training)
    return evaluation_interval(settings, plan_steps(settings, training.get("epochs", 3.0), examples), cost_steps)


@pytest.mark.parametrize(
    ("training", "examples", "cost_steps", "expected"),
    [
        # Cheap ones: four an epoch, or one in 50 steps.
        ({}, 800, 0.0, 12),
        ({}, 800, 3.0, 12),
        ({}, 100_000, 12.5, 50),
        ({}, 5, 0.1, 1),
        # A fifth of the time: 4 steps for each step that an evaluation takes as long as, spread evenly.
        ({}, 800, 3.1, 13),
        ({}, 800, 8.0, 38),
        ({}, 100_000, 200.0, 816),
        # Dearer ones: one an epoch.
        ({}, 800, 100.0, 50),
        ({"epochs": 10.0}, 800, 100.0, 50),
        ({}, 100, 17.0, 7),
        # Three a run, however short.
        ({"epochs": 1.0}, 800, 100.0, 17),
        ({"epochs": 1.0}, 64, 100.0, 1),
        ({"epochs": 1.0}, 80, 100.0, 2),
        ({"maxSteps": 10}, 800, 100.0, 4),
        ({"maxSteps": 10}, 800, 0.0, 4),
        ({"maxSteps": 100}, 100_000, 100.0, 34),
        ({"maxSteps": 300}, 100_000, 1000.0, 100),
        ({"epochs": 1.0}, 16, 100.0, 1),
        ({}, 5, 100.0, 1),
        # As asked, whatever it costs.
        ({"evalSteps": 7}, 800, 100.0, 7),
        ({"evalSteps": 1}, 800, 1000.0, 1),
        ({"evalSteps": 700}, 800, 0.0, 150),
        # The plateau rule compares evaluations.
        ({"maxSteps": 500, "extendTo": 1000, "scheduler": "wsd"}, 100_000, 100.0, 50),
    ],
)
def test_the_interval(training: dict[str, Any], examples: int, cost_steps: float, expected: int) -> None:
    assert interval(training, examples, cost_steps) == expected


@given(total=st.integers(1, 20_000), per_epoch=st.integers(1, 20_000), cost_steps=st.floats(0, 5_000))
def test_the_bounds_hold_for_every_run(total: int, per_epoch: int, cost_steps: float) -> None:
    every = evaluation_interval(Training(), Steps(per_epoch, total), cost_steps)
    evaluations, needed = math.ceil(total / every), max(3, math.ceil(total / per_epoch))
    assert evaluations >= min(total, needed)
    too_dear = cost_steps / (cost_steps + every) > LARGEST_SHARE + 1e-6
    assert not too_dear or math.ceil(total / (2 * every)) < needed, "half as many would do"


@given(total=st.integers(1, 5_000), per_epoch=st.integers(1, 5_000), cost=st.floats(0, 500), more=st.floats(0, 500))
def test_dearer_evaluations_are_never_more_frequent(total: int, per_epoch: int, cost: float, more: float) -> None:
    cheap, dear = (evaluation_interval(Training(), Steps(per_epoch, total), c) for c in (cost, cost + more))
    assert cheap <= dear


WORK = Workload(800, 80_000, 100, 200, 0, typical_length=100, longest_row=500)
"""Rows of 100 tokens."""
UNKNOWN = ModelFacts(architecture="Unknown", parameters=1)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        # 100 rows, and one batch of 16 answers of half of 256 tokens; a step is three passes over 16 rows.
        ({}, (100 * 100 + 256 * 128) / (3 * 1600)),
        ({"evaluation": {"maxNewTokens": 64}}, (100 * 100 + 4 * 256 * 32) / (3 * 1600)),  # 64 answers
        ({"training": {"validationSamples": 0}}, 100 * 100 / (3 * 1600)),
        ({"training": {"validationSamples": 17}}, (100 * 100 + 2 * 256 * 128) / (3 * 1600)),
        ({"training": {"globalBatchSize": 64}}, (100 * 100 + 256 * 128) / (3 * 6400)),
        ({"method": {"objective": "dpo"}}, (2 * 100 * 100 + 256 * 128) / (2 * 3 * 1600)),
        ({"method": {"objective": "kto"}}, (2 * 100 * 100 + 256 * 128) / (3 * 1600)),
    ],
)
def test_what_an_evaluation_costs(spec: dict[str, Any], expected: float) -> None:
    evaluation = spec.pop("evaluation", {})
    wire = job_dict(**spec)["spec"]
    wire["evaluation"] |= evaluation
    assert evaluation_cost_steps(FineTuneJobSpec.from_wire(wire), WORK, UNKNOWN, "lora") == pytest.approx(expected)


def test_rows_without_a_known_length_cost_something() -> None:
    nothing = Workload(800, 0, 100, 200, 0, typical_length=1, longest_row=1)
    assert math.isfinite(evaluation_cost_steps(FineTuneJobSpec.from_wire(job_dict()["spec"]), nothing, UNKNOWN, "lora"))


@pytest.mark.parametrize(
    ("model", "tokens"), [("Qwen2.5-0.5B", 880), ("Qwen2.5-1.5B", 880), ("Llama-3.1-8B", 285), ("Llama-3.1-70B", 90)]
)
def test_answers_of_a_small_model_take_more_of_its_steps(model: str, tokens: float) -> None:
    """A step of a small model is over soon; an answer waits for as many kernels as one of a large model."""
    facts = facts_of_shape(model)
    assert decoded_token_passes(facts, "lora", 1600, 100) == pytest.approx(tokens, rel=0.02)
    assert decoded_token_passes(facts, "qlora", 1600, 100) > decoded_token_passes(facts, "lora", 1600, 100)
    spec = FineTuneJobSpec.from_wire(job_dict()["spec"])
    small, unknown = (evaluation_cost_steps(spec, WORK, known, "lora") for known in (facts, UNKNOWN))
    assert (small > unknown) == (tokens > 256)
