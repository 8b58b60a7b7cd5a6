"""What is trained with where the job does not say, and what is called unusual."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.job.method import Method
from finetune_api.job.recipe import RECIPES, epochs, learning_rate, rate_share, resolved_training
from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.job.training import Training
from finetune_api.stages import PrepareResult
from finetune_operator.decide.hashing import fingerprint
from finetune_operator.planner.plan import make_plan
from finetune_operator.planner.recipe import few_steps_warning, recipe_warnings
from tests.decide.test_planner import resolved
from tests.decide.world import PREPARED, World, job_dict

KNOWN = PrepareResult.from_wire(PREPARED)


def asked(**spec: Any) -> FineTuneJobSpec:
    return FineTuneJobSpec.from_wire(job_dict(**spec)["spec"])


@pytest.mark.parametrize(
    ("method", "training", "rate", "passes"),
    [
        ({}, {}, 2e-4, 3.0),
        ({"objective": "dpo"}, {}, 5e-6, 1.0),
        ({"objective": "kto"}, {}, 5e-6, 1.0),
        ({"objective": "dpo"}, {"learningRate": 1e-5, "epochs": 2}, 1e-5, 2.0),
        ({}, {"optimizer": "lion"}, 4e-5, 3.0),
        ({"objective": "kto"}, {"optimizer": "paged_lion_8bit"}, 1e-6, 1.0),
        ({}, {"optimizer": "paged_adamw_8bit"}, 2e-4, 3.0),
        ({}, {"optimizer": "adafactor"}, 2e-4, 3.0),
        ({}, {"optimizer": "lion", "learningRate": 2e-4}, 2e-4, 3.0),  # what the job says is not scaled
    ],
)
def test_rate_and_epochs_follow_from_objective_and_optimiser(
    method: dict[str, Any], training: dict[str, Any], rate: float, passes: float
) -> None:
    plan = make_plan(asked(method=method, training=training), resolved(1, 80.0), KNOWN)
    assert (plan.learning_rate, plan.epochs) == (rate, passes)
    assert plan.total_steps == math.ceil(passes * 900 / 16), "900 rows with replay, 16 a step"


@given(st.sampled_from(sorted(RECIPES)), st.sampled_from(["adamw_torch_fused", "lion", "adafactor"]))
def test_a_recipe_lies_within_its_own_range(objective: Any, optimizer: Any) -> None:
    method, training = Method(objective=objective), Training(optimizer=optimizer)
    recipe, share = RECIPES[objective], rate_share(optimizer)
    assert recipe.lowest_rate * share < learning_rate(method, training) < recipe.highest_rate * share
    assert epochs(method, training) == recipe.epochs


def test_the_planned_rate_goes_before_a_later_versions_recipe() -> None:
    method = Method(objective="dpo")
    assert resolved_training(method, Training(), 7e-6).learning_rate == 7e-6
    assert resolved_training(method, Training()).learning_rate == 5e-6


def test_the_fingerprint_knows_the_rate_in_force_and_not_who_said_it() -> None:
    def of(**spec: Any) -> str:
        wanted = asked(**spec)
        return fingerprint(wanted, KNOWN, make_plan(wanted, resolved(1, 80.0), KNOWN))

    dpo = {"objective": "dpo"}
    assert of(method=dpo) == of(method=dpo, training={"learningRate": 5e-6, "epochs": 1})
    assert of() == of(training={"learningRate": 2e-4, "epochs": 3})
    assert of(method=dpo) != of(method=dpo, training={"learningRate": 2e-4})
    assert of(method=dpo) != of(method=dpo, training={"epochs": 2})


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        # (what trips it, its words) and beside it what nearly does
        ({"method": {"objective": "dpo"}, "training": {"learningRate": 2e-4}}, ["learningRate: 0.0002 is 40 times"]),
        ({"method": {"objective": "dpo"}, "training": {"learningRate": 5e-5}}, []),
        ({"method": {"objective": "kto"}, "training": {"learningRate": 6e-5}}, ["is 12 times", "set 5e-06 to 5e-05"]),
        ({"training": {"learningRate": 2e-4}}, []),
        ({"training": {"learningRate": 1e-3}}, []),
        ({"training": {"learningRate": 1.1e-3}}, ["sft with adamw_torch_fused"]),
        ({"training": {"learningRate": 2e-4, "optimizer": "lion"}}, []),
        ({"training": {"learningRate": 5e-4, "optimizer": "lion"}}, ["is 12 times", "sft with lion (4e-05)"]),
        ({"training": {"learningRate": 9e-6}}, ["22 times below", "a rate of full fine-tuning"]),
        ({"training": {"learningRate": 1e-5}}, []),
        ({"method": {"rank": 256, "alpha": 128, "useRslora": True}}, []),
        ({"method": {"rank": 256, "alpha": 256, "useRslora": True}}, ["alpha/sqrt(rank) = 16", "128 at most"]),
        ({"method": {"rank": 16, "alpha": 128}}, []),
        ({"method": {"rank": 16, "alpha": 256}}, ["alpha/rank = 16", "128 at most"]),
        ({"method": {"objective": "dpo"}, "training": {"epochs": 3}}, []),
        ({"method": {"objective": "dpo"}, "training": {"epochs": 4}}, ["training.epochs: 4 passes with dpo"]),
        ({"training": {"epochs": 10}}, []),
    ],
)
def test_what_is_far_from_published_recipes_is_named(spec: dict[str, Any], words: list[str]) -> None:
    found = recipe_warnings(asked(**spec), KNOWN.model)
    assert len(found) == (1 if words else 0)
    assert all(word in found[0] for word in words)


@pytest.mark.parametrize(
    ("rows", "training", "gpus", "words"),
    [
        (5, {}, 1, ["5 rows and 3 epochs make 1 optimiser step of 16", "more than once", "globalBatchSize: 1,"]),
        (47, {}, 1, ["47 rows and 3 epochs make 9 optimiser steps of 16 examples: too few", "globalBatchSize: 14,"]),
        (47, {}, 4, ["globalBatchSize: 12,"]),
        (7, {"globalBatchSize": 4, "epochs": 3}, 4, ["make 6 optimiser steps", "give more rows"]),
        (49, {}, 1, []),
        (5, {"maxSteps": 3}, 1, []),
    ],
)
def test_a_training_of_few_steps_is_named(rows: int, training: dict[str, Any], gpus: int, words: list[str]) -> None:
    spec = asked(training=training)
    known = KNOWN.model_copy(update={"rows": KNOWN.rows.model_copy(update={"train": rows, "replay": 0})})
    plan = make_plan(spec, resolved(gpus, 80.0), known)
    found = few_steps_warning(spec, known.model, rows, plan)
    assert len(found) == bool(words)
    assert all(word in found[0] for word in words)
    toy = known.model.model_copy(update={"parameters": 1_000_000})
    assert few_steps_warning(spec, toy, rows, plan) == []


def test_small_models_take_other_rates() -> None:
    small = KNOWN.model.model_copy(update={"parameters": 600_000})
    assert recipe_warnings(asked(training={"learningRate": 3e-3}), small) == []


def test_a_warning_is_a_finding_and_the_run_goes_on() -> None:
    job = job_dict(method={"objective": "dpo"}, training={"learningRate": 2e-4})
    world = World(job)
    world.settle()
    world.succeed(PREPARED)
    told = [finding for finding in world.status.findings if finding.check == "recipe"]
    assert [finding.severity for finding in told] == ["warning"]
    assert world.status.phase == "Baseline"
    assert world.status.plan is not None
    assert world.status.plan.learning_rate == 2e-4
