"""Steps, batches, method and memory."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.job.status import Resolved
from finetune_api.job.training import Training
from finetune_api.stages import PrepareResult
from finetune_operator.planner.plan import make_plan
from finetune_operator.planner.steps import PlanError, packs, plan_steps, split_batch
from tests.decide.world import PREPARED, STORAGE, job_dict, pool


@pytest.mark.parametrize(
    ("training", "examples", "total"),
    [
        ({}, 800, 150),
        ({"epochs": 1.0}, 16, 1),
        ({"maxSteps": 10}, 800, 10),
        ({}, 100_000, 18750),
        ({"epochs": 0.5}, 800, 25),
        ({}, 5, 1),  # 15 examples to see: not three batches of 16
        ({}, 17, 4),
        ({"epochs": 1.0}, 100, 7),
        ({}, 100, 19),
        ({"epochs": 1.1}, 160, 11),  # 1.1 x 160 / 16 is a little more than 11 in floating point
    ],
)
def test_steps(training: dict[str, Any], examples: int, total: int) -> None:
    steps = plan_steps(Training.from_wire(training), training.get("epochs", 3.0), examples)
    assert steps.total == total


@given(epochs=st.floats(0.1, 20), batch=st.integers(1, 512), examples=st.integers(1, 5000))
def test_every_example_is_seen_as_often_as_was_asked_and_one_batch_more_at_most(
    epochs: float, batch: int, examples: int
) -> None:
    total = plan_steps(Training(global_batch_size=batch), epochs, examples).total
    assert epochs * examples <= total * batch + 1e-3
    assert total * batch < epochs * examples + batch


def test_no_rows_is_an_error_that_names_the_field() -> None:
    with pytest.raises(PlanError, match=r"data\.train"):
        plan_steps(Training(), 3.0, 0)


@given(batch=st.integers(1, 4096), processes=st.integers(1, 64), largest=st.integers(1, 64))
def test_the_global_batch_is_never_changed(batch: int, processes: int, largest: int) -> None:
    try:
        micro, accumulation = split_batch(batch, processes, largest)
    except PlanError:
        assert batch % processes
        return
    assert micro * accumulation * processes == batch
    assert micro <= largest


@pytest.mark.parametrize(
    ("packing", "examples", "gpus", "expected"),
    [
        ("auto", 10_000, 1, True),
        ("auto", 10_000, 0, False),
        ("auto", 200, 1, False),
        ("enabled", 200, 0, True),
        ("disabled", 10_000, 8, False),
    ],
)
def test_packing(packing: str, examples: int, gpus: int, expected: bool) -> None:
    training = Training.from_wire({"packing": packing})
    assert packs(training, plan_steps(training, 3.0, examples), gpus) is expected


def resolved(gpus: int, memory_gib: float) -> Resolved:
    offered = pool(gpusPerNode=max(gpus, 0), gpuMemoryGib=memory_gib)
    return Resolved.from_wire(
        {"pool": "a100", "poolSpec": offered.spec.to_wire(), "gpusPerNode": gpus, "storage": STORAGE}
    )


@pytest.mark.parametrize(
    ("gpus", "memory_gib", "asked", "method"),
    [(1, 80.0, "auto", "lora"), (1, 16.0, "auto", "qlora"), (0, 0.0, "auto", "lora"), (1, 80.0, "qlora", "qlora")],
)
def test_method(gpus: int, memory_gib: float, asked: str, method: str) -> None:
    spec = FineTuneJobSpec.from_wire(job_dict(method={"type": asked})["spec"])
    plan = make_plan(spec, resolved(gpus, memory_gib), PrepareResult.from_wire(PREPARED))
    assert plan.method == method
    assert plan.micro_batch_size * plan.gradient_accumulation == 16
    assert plan.precision == ("bf16" if gpus else "fp32")
