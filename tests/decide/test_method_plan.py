"""What the plan and the forecast make of method.* and training.*: batches, steps, memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.job.training import Training
from finetune_api.stages import PrepareResult, TrainPlan
from finetune_operator.decide.hashing import fingerprint
from finetune_operator.planner.advice import what_would_fit
from finetune_operator.planner.families import known_shapes
from finetune_operator.planner.fit import Offered
from finetune_operator.planner.forecast import demand_of
from finetune_operator.planner.memory.adapter import adapter_parameters
from finetune_operator.planner.memory.dora import dora_saved_bytes_per_block, dora_saved_bytes_per_token
from finetune_operator.planner.memory.optimizer import optimiser_bytes_per_parameter
from finetune_operator.planner.memory.training import TrainingSetup, training_memory
from finetune_operator.planner.memory.weights import weight_bytes
from finetune_operator.planner.plan import make_plan
from finetune_operator.planner.steps import PlanError, plan_steps, split_batch
from finetune_operator.planner.workload import workload_of
from tests.decide.test_planner import resolved
from tests.decide.world import PREPARED, job_dict

LLAMA = known_shapes()["Llama-3.1-8B"]
ALL = tuple(LLAMA.linears)
SETUP = TrainingSetup(LLAMA, "nf4-double", rank=16, micro_batch=4, sequence_length=1024)
KNOWN = PrepareResult.from_wire(PREPARED)


def planned(gpus: int = 1, memory_gib: float = 80.0, **spec: Any) -> TrainPlan:
    asked = FineTuneJobSpec.from_wire(job_dict(**spec)["spec"])
    return make_plan(asked, resolved(gpus, memory_gib), KNOWN)


@pytest.mark.parametrize(
    ("training", "total", "extend_to"),
    [
        ({"maxSteps": 50, "extendTo": 100, "scheduler": "wsd"}, 50, 100),
        ({"maxSteps": 50, "extendTo": 1000, "scheduler": "wsd"}, 50, 150),  # epochs stays a bound
        ({"maxSteps": 200, "extendTo": 1000, "scheduler": "wsd"}, 150, None),  # epochs ends it before
        ({"maxSteps": 50}, 50, None),
    ],
)
def test_steps_of_an_extension(training: dict[str, Any], total: int, extend_to: int | None) -> None:
    steps = plan_steps(Training.from_wire(training), 3.0, 800)
    assert (steps.total, steps.extend_to) == (total, extend_to)


@pytest.mark.parametrize(
    ("batch", "processes", "asked", "split"), [(16, 1, 4, (4, 4)), (16, 2, 8, (8, 1)), (16, 2, 1, (1, 8))]
)
def test_an_asked_micro_batch_is_kept(batch: int, processes: int, asked: int, split: tuple[int, int]) -> None:
    assert split_batch(batch, processes, 1, asked) == split


def test_a_micro_batch_that_does_not_divide_is_refused_with_those_that_do() -> None:
    with pytest.raises(PlanError, match=r"training\.microBatchSize: 16 does not divide the 8 .* use 1 or 2 or 4 or 8"):
        split_batch(16, 2, 4, 16)


@pytest.mark.parametrize(
    ("training", "field", "value"),
    [
        ({"gradientCheckpointing": "enabled"}, "gradient_checkpointing", True),
        ({"gradientCheckpointing": "disabled"}, "gradient_checkpointing", False),
        ({"precision": "fp32"}, "precision", "fp32"),
        ({"microBatchSize": 2}, "micro_batch_size", 2),
    ],
)
def test_what_the_user_says_is_planned(training: dict[str, Any], field: str, value: object) -> None:
    assert getattr(planned(training=training, method={"type": "lora"}), field) == value


def test_pairs_are_not_packed() -> None:
    long = {"epochs": 100, "packing": "auto"}
    assert planned(training=long).packing
    assert not planned(training=long, method={"objective": "dpo"}).packing


@pytest.mark.parametrize(
    ("strategy", "method", "refused"),
    [("fsdp", "lora", True), ("fsdp", "qlora", False), ("deepspeed", "qlora", True), ("ddp", "lora", False)],
)
def test_8_bit_states_are_not_cut_into_parts(strategy: str, method: str, refused: bool) -> None:
    spec = {
        "training": {"optimizer": "adamw_8bit"},
        "method": {"type": method},
        "compute": {"strategy": strategy, "gpusPerNode": 2},
    }
    if refused:
        with pytest.raises(PlanError, match=r"training\.optimizer: the states of adamw_8bit cannot be shared out"):
            planned(2, **spec)
    else:
        assert planned(2, **spec).strategy == strategy


@pytest.mark.parametrize("bits", [4, 8])
def test_auto_keeps_whole_what_cannot_be_cut(bits: int) -> None:
    """8-bit weights are integers, which FSDP does not flatten: a replica, although only parts would fit."""
    spec = {"method": {"type": "qlora", "bits": bits}, "compute": {"gpusPerNode": 8}}
    assert planned(8, 80.0, **spec).strategy == "ddp"
    assert planned(8, 11.0, **spec).strategy == ("fsdp" if bits == 4 else "ddp")


@pytest.mark.parametrize("optimizer", ["adamw_torch_fused", "lion", "adafactor"])
def test_auto_keeps_whole_what_an_optimiser_cannot_cut(optimizer: str) -> None:
    spec = {"method": {"type": "lora"}, "compute": {"gpusPerNode": 2}, "training": {"optimizer": optimizer}}
    assert planned(2, 20.0, **spec).strategy == ("fsdp" if optimizer == "adamw_torch_fused" else "ddp")


@pytest.mark.parametrize(
    "compute",
    [{"strategy": "fsdp"}, {"strategy": "deepspeed"}, {"strategy": "deepspeed", "deepspeed": {"stage": 3}}],
    ids=["fsdp", "ZeRO-3 by default", "ZeRO-3"],
)
def test_8_bit_weights_are_not_cut_into_parts(compute: dict[str, Any]) -> None:
    asked = FineTuneJobSpec.from_wire(job_dict(method={"type": "qlora"}, compute=compute | {"gpusPerNode": 2})["spec"])
    assert make_plan(asked, resolved(2, 80.0), KNOWN).strategy == compute["strategy"]
    # Stored before the contract refused the pair: parsed without its rules.
    stored = asked.model_copy(update={"method": asked.method.model_copy(update={"bits": 8})})
    with pytest.raises(PlanError, match=r"method\.bits: 8-bit weights cannot be shared out .* set bits: 4, or compute"):
        make_plan(stored, resolved(2, 80.0), KNOWN)


def test_8_bit_weights_stay_whole_under_zero_2() -> None:
    compute = {"strategy": "deepspeed", "deepspeed": {"stage": 2}, "gpusPerNode": 2}
    assert planned(2, method={"type": "qlora", "bits": 8}, compute=compute).zero_stage == 2


# -- memory --


def test_dora_adds_a_magnitude_per_output() -> None:
    outputs = 4096 + 1024 + 1024 + 4096 + 14336 + 14336 + 4096
    assert adapter_parameters(LLAMA, 16, ALL, dora=True) - adapter_parameters(LLAMA, 16, ALL) == 32 * outputs


def test_dora_saves_what_was_measured() -> None:
    """Saved tensors of a Llama block in bf16 with all targets, beyond LoRA's: hidden 128, I 256, kv 32, r 8."""
    shape = replace(LLAMA, layers=1, hidden=128, feed_forward=256, heads=8, key_value_heads=2, head_size=16)
    assert dora_saved_bytes_per_token(shape, ALL) == 8796 - 4956
    assert dora_saved_bytes_per_block(shape, 8, ALL) == pytest.approx(349824, rel=0.02)


@pytest.mark.parametrize(("quantisation", "gb"), [("int8", 8.5), ("nf4-double", 5.7), ("none", 16.06), ("fp32", 32.1)])
def test_weights_by_precision(quantisation: Any, gb: float) -> None:
    # int8: one byte for each of 6.98e9 parameters of the blocks, 16 bit for embedding and head.
    expected = 6.98 + 2.1 if quantisation == "int8" else gb
    assert weight_bytes(LLAMA, quantisation) / 1e9 == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("optimizer", "size"),
    [("adamw_torch_fused", 8), ("adamw_8bit", 2.03), ("lion", 4), ("lion_8bit", 1.02), ("adafactor", 0.26)],
)
def test_states_per_parameter(optimizer: Any, size: float) -> None:
    assert optimiser_bytes_per_parameter(optimizer, 4, 16) == pytest.approx(size, rel=0.01)


def test_what_needs_more_and_less_memory() -> None:
    plain = training_memory(SETUP).device_bytes
    assert training_memory(replace(SETUP, dora=True)).device_bytes > plain
    assert training_memory(replace(SETUP, quantisation="int8")).device_bytes > plain
    assert training_memory(replace(SETUP, optimizer="adamw_8bit")).device_bytes < plain
    pairs = training_memory(replace(SETUP, sequences=2))
    assert pairs.device_bytes == training_memory(replace(SETUP, micro_batch=8)).device_bytes


# -- identity --


def test_the_fingerprint_knows_what_is_learned_and_not_how_it_is_computed() -> None:
    def of(**spec: Any) -> str:
        asked = FineTuneJobSpec.from_wire(job_dict(**spec)["spec"])
        return fingerprint(asked, KNOWN, make_plan(asked, resolved(1, 80.0), KNOWN))

    plain = of()
    how = {
        "microBatchSize": 1,
        "gradientCheckpointing": "enabled",
        "torchCompile": "enabled",
        "checkpoints": {"keep": 9},
    }
    assert of(training=how) == plain
    learned = [
        of(training={"optimizer": "lion"}),
        of(training={"weightDecay": 0.1}),
        of(training={"scheduler": "linear"}),
        of(method={"useRslora": True}),
        of(method={"objective": "dpo"}),
        of(method={"objective": "dpo", "beta": 0.5}),
        of(method={"excludeModules": "down_proj"}),
    ]
    assert len({plain, *learned}) == len(learned) + 1


@pytest.mark.parametrize(
    ("bits", "words"), [(4, ", or 8 GPUs with compute.strategy: fsdp"), (8, "more GPUs do not help")]
)
def test_more_gpus_are_advised_only_where_the_job_can_be_cut(bits: int, words: str) -> None:
    spec = FineTuneJobSpec.from_wire(job_dict(method={"type": "qlora", "bits": bits})["spec"])
    demand = demand_of(spec, LLAMA, KNOWN.model, workload_of(spec, KNOWN), "qlora", 1, packed=False)
    assert words in what_would_fit(demand, Offered(11.0, 8, 8, 1), 200)
