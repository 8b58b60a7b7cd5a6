"""What is changed when a GPU's memory was not enough: the gentler steps, their order and their end."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.stages import EVALUATION_EXHAUSTED, PROBE_EXHAUSTED, TrainPlan
from finetune_operator.decide.causes import registry
from tests.decide.world import World, job_dict, pool


def test_gpu_out_of_memory_climbs_the_ladder_with_the_same_effective_batch() -> None:
    world = World()
    world.run_to("train")
    seen = []
    while world.status.phase == "Training":
        plan = world.status.plan
        assert plan is not None
        seen.append((plan.micro_batch_size, plan.gradient_accumulation, plan.gradient_checkpointing))
        report = world.report(outcome="Failed", exitCode=86, cause="GPUOutOfMemory", message="CUDA out of memory")
        world.end(86, report)
    assert {micro * accumulation for micro, accumulation, _ in seen} == {16}
    assert seen[-1][0] == 1
    assert world.status.reason == "GPUOutOfMemory"


@pytest.mark.parametrize("stage", ["baseline", "evaluate"])
def test_a_stage_that_judges_spreads_one_copy_further(stage: str) -> None:
    world = World(job_dict(compute={"pool": "a100", "gpusPerNode": 4}), pools=(pool(gpusPerNode=4),))
    world.run_to(stage)
    spread: list[int] = []
    while world.status.phase != "Failed":
        assert world.status.plan is not None
        spread.append(world.status.plan.judging_gpus)
        report = world.report(outcome="Failed", exitCode=86, cause="GPUOutOfMemory", message="CUDA out of memory")
        world.end(86, report)
    assert spread == [1, 2, 4]
    assert "next attempt: one copy of the model over 2 -> 4 GPUs" in str([s.message for s in world.status.stages])
    assert "more of them in a pod" in world.status.next_step


def test_vllm_has_every_gpu_already() -> None:
    adjust = registry()["GPUOutOfMemory"].adjust_judging
    assert adjust is not None
    world = World(job_dict(compute={"pool": "a100", "gpusPerNode": 2}, evaluation={"engine": "vllm"}))
    world.run_to("baseline")
    assert world.status.plan is not None
    assert adjust(world.status.plan, world.job.spec) is None


@pytest.mark.parametrize("stage", ["baseline", "evaluate"])
def test_the_ladder_is_not_climbed_for_a_stage_that_does_not_train(stage: str) -> None:
    """Micro-batch and strategy mean nothing to answering: the same attempt would end the same way, and cost."""
    world = World()
    world.run_to(stage)
    plan = world.status.plan
    report = world.report(outcome="Failed", exitCode=86, cause="GPUOutOfMemory", message="CUDA out of memory")
    world.end(86, report)
    assert (world.status.phase, world.status.reason) == ("Failed", "GPUOutOfMemory")
    assert world.status.plan == plan
    assert [attempt.name for attempt in world.status.stages].count(stage) == 1
    for fix in ("compute.pool", "method.type: qlora", "training.maxLength", "evaluation.maxNewTokens"):
        assert fix in world.status.next_step
    assert world.status.stages[-1].hint == world.status.next_step
    assert "training.microBatchSize" not in world.status.next_step


@pytest.mark.parametrize(
    ("strategy", "evidence", "expected"),
    [
        ("ddp", "", (4, 2, False, "ddp")),
        ("ddp", f"{PROBE_EXHAUSTED}: as planned", (1, 8, True, "fsdp")),
        ("single", f"{PROBE_EXHAUSTED}: as planned", None),
        ("deepspeed", "", (4, 2, False, "deepspeed")),
        ("deepspeed", f"{PROBE_EXHAUSTED}: as planned", None),
        # An evaluation that ran out has tried single rows: only weights in parts give it room.
        ("ddp", f"{EVALUATION_EXHAUSTED}: tried to allocate", (8, 1, False, "fsdp")),
        ("single", f"{EVALUATION_EXHAUSTED}: tried to allocate", None),
        ("fsdp", f"{EVALUATION_EXHAUSTED}: tried to allocate", None),
    ],
)
def test_what_the_probe_has_tried_is_not_tried_again(
    strategy: str, evidence: str, expected: tuple[int, int, bool, str] | None
) -> None:
    step = _gentler(strategy, evidence)
    found = step and (
        step[0].micro_batch_size,
        step[0].gradient_accumulation,
        step[0].gradient_checkpointing,
        step[0].strategy,
    )
    assert found == expected


def _plan(strategy: str, planned: str = "lora") -> TrainPlan:
    """For two GPUs, with micro-batch 8 and ZeRO stage 2."""
    return TrainPlan.model_validate(
        {
            "method": planned,
            "strategy": strategy,
            "nodes": 1,
            "gpusPerNode": 2,
            "totalSteps": 1,
            "microBatchSize": 8,
            "gradientAccumulation": 1,
            "evalSteps": 1,
            "zeroStage": 2,
        }
    )


def _gentler(strategy: str, evidence: str, planned: str = "lora", **spec: Any) -> tuple[TrainPlan, str] | None:
    adjust = registry()["GPUOutOfMemory"].adjust
    assert adjust is not None
    return adjust(_plan(strategy, planned), FineTuneJobSpec.from_wire(job_dict(**spec)["spec"]), evidence)


@pytest.mark.parametrize(("micro", "rungs"), [(6, [3, 1]), (9, [3, 1]), (7, [1]), (8, [4, 2, 1]), (1, [])])
def test_every_micro_batch_goes_down_to_one_with_the_same_examples_per_step(micro: int, rungs: list[int]) -> None:
    plan: TrainPlan | None = _plan("ddp").model_copy(update={"micro_batch_size": micro, "gradient_accumulation": 5})
    seen = []
    while plan is not None and (plan := plan.with_smaller_micro_batch()) is not None:
        seen.append(plan.micro_batch_size)
        assert plan.micro_batch_size * plan.gradient_accumulation == 5 * micro
    assert seen == rungs


EIGHT_BIT = {"type": "qlora", "bits": 8}
LION = {"optimizer": "lion"}
DEEPSPEED_2 = {"strategy": "deepspeed", "deepspeed": {"stage": 2}}
NO_RECOMPUTATION = {"gradientCheckpointing": "disabled"}
COMPILED = {"torchCompile": "enabled"}


@pytest.mark.parametrize(
    ("strategy", "method", "spec", "changed"),
    [
        ("ddp", "qlora", {"method": {"type": "qlora", "bits": 4}}, "strategy ddp -> fsdp"),
        ("ddp", "qlora", {"method": EIGHT_BIT}, None),
        ("deepspeed", "lora", {"compute": DEEPSPEED_2}, None),
        ("ddp", "lora", {"method": {"bits": 8}}, "strategy ddp -> fsdp"),  # auto took lora: bits mean nothing
        ("ddp", "lora", {"compute": {"strategy": "ddp"}}, None),
        ("ddp", "lora", {"compute": {"strategy": "auto"}}, "strategy ddp -> fsdp"),
        ("ddp", "lora", {"training": COMPILED}, None),
        ("ddp", "lora", {"training": LION}, None),
        ("ddp", "lora", {"training": {"optimizer": "adamw_8bit"}}, None),
        ("ddp", "lora", {"training": {"optimizer": "adafactor"}}, None),
        ("ddp", "qlora", {"training": LION}, "strategy ddp -> fsdp"),
    ],
)
def test_the_ladder_ends_where_parts_cannot_be_made_or_were_not_wanted(
    strategy: str, method: str, spec: dict[str, Any], changed: str | None
) -> None:
    step = _gentler(strategy, f"{PROBE_EXHAUSTED}: as planned", method, **spec)
    assert (step and step[1]) == changed
    halved = _gentler(strategy, "", method, **spec)
    assert halved is not None
    assert halved[1] == "micro-batch 8 -> 4", "the gentler steps before it are still taken"


def test_recomputation_that_the_spec_rules_out_is_not_switched_on() -> None:
    probed = f"{PROBE_EXHAUSTED}: as planned"
    step = _gentler("ddp", probed, training=NO_RECOMPUTATION)
    assert step is not None
    assert (step[1], step[0].gradient_checkpointing) == ("strategy ddp -> fsdp", False)
    assert _gentler("single", probed, training=NO_RECOMPUTATION) is None


@pytest.mark.parametrize(
    ("strategy", "spec", "named"),
    [
        ("deepspeed", {"compute": DEEPSPEED_2}, ["compute.deepspeed.stage: 2"]),
        ("deepspeed", {"compute": DEEPSPEED_2, "method": {"type": "qlora", "bits": 8}}, []),  # 3 could not be had
        ("ddp", {"compute": {"strategy": "ddp"}}, ["compute.strategy: ddp"]),
        ("ddp", {"compute": {"strategy": "ddp"}, "training": LION}, []),
        ("single", {"training": NO_RECOMPUTATION}, ["training.gradientCheckpointing: disabled"]),
        ("ddp", {"training": COMPILED}, ["training.torchCompile: enabled"]),
        ("single", {"training": COMPILED}, []),
        ("single", {}, []),
    ],
)
def test_what_the_spec_rules_out_is_named_where_the_ladder_ends(
    strategy: str, spec: dict[str, Any], named: list[str]
) -> None:
    held = registry()["GPUOutOfMemory"].held
    assert held is not None
    method = "qlora" if "method" in spec else "lora"
    said = held(_plan(strategy, method), FineTuneJobSpec.from_wire(job_dict(**spec)["spec"]))
    fields = (
        "compute.deepspeed.stage: 2",
        "compute.strategy: ddp",
        "training.gradientCheckpointing: disabled",
        "training.torchCompile: enabled",
    )
    assert [field for field in fields if field in said] == named
    assert bool(said) == bool(named)


def test_the_end_of_the_ladder_tells_the_user_which_of_their_fields_to_change() -> None:
    world = World(job_dict(training=NO_RECOMPUTATION))
    world.run_to("train")
    while world.status.phase == "Training":
        assert world.status.plan is not None
        assert not world.status.plan.gradient_checkpointing
        world.end(86, world.report(outcome="Failed", exitCode=86, cause="GPUOutOfMemory", message="CUDA out of memory"))
    assert world.status.next_step.startswith("The spec rules out what would need less memory: training.gradientCheck")
    assert "compute.pool" in world.status.next_step
