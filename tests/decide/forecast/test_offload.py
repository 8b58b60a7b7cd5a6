"""What DeepSpeed keeps in host memory is missing on the GPU, and is asked of the host."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from finetune_operator.planner.disk import pinned_bytes
from finetune_operator.planner.families import known_shapes
from finetune_operator.planner.memory.adapter import adapter_parameters
from finetune_operator.planner.memory.training import TrainingSetup, training_memory, validation_memory
from finetune_operator.planner.shape import ModelShape
from tests.decide.forecast.test_forecast import planned, prepared
from tests.decide.world import job_dict

LLAMA = known_shapes()["Llama-3.1-8B"]
ZERO_3 = TrainingSetup(LLAMA, "none", rank=64, micro_batch=1, sequence_length=1024, strategy="zero3", gpus=4)
ON_GPU = {"weights", "adapter", "gradients", "optimiser", "masterCopy"}


@pytest.mark.parametrize(
    ("strategy", "offload", "gone"),
    [
        ("zero3", "none", set()),
        ("zero2", "none", set()),
        ("zero3", "optimizer", {"gradients", "optimiser", "masterCopy"}),
        ("zero2", "optimizer", {"gradients", "optimiser", "masterCopy"}),
        ("zero3", "parameters", ON_GPU),
    ],
)
def test_what_is_offloaded_leaves_the_gpu(strategy: Any, offload: Any, gone: set[str]) -> None:
    setup = replace(ZERO_3, strategy=strategy, offload=offload)
    for peak in (training_memory(setup), validation_memory(setup, 100, 1024)):
        found = {name for name, size in peak.allocated.items() if size > 0}
        assert not found & gone
        assert ON_GPU - gone <= found


def test_every_zero_stage_keeps_a_master_copy_in_parts() -> None:
    parameters = adapter_parameters(LLAMA, 64, tuple(LLAMA.linears))
    copies = {
        strategy: training_memory(replace(ZERO_3, strategy=strategy)).allocated.get("masterCopy", 0.0)
        for strategy in ("single", "ddp", "fsdp", "zero2", "zero3")
    }
    assert copies == {"single": 0, "ddp": 0, "fsdp": 0, "zero2": parameters, "zero3": parameters}


def test_zero_2_holds_its_bucket_in_the_adapters_precision_and_the_gradients_of_two_batches() -> None:
    """5e8 elements, whatever the adapter (DeepSpeed's default), which are fp32 as the runner's adapters are."""
    parameters = adapter_parameters(LLAMA, 64, tuple(LLAMA.linears))
    parts = training_memory(replace(ZERO_3, strategy="zero2")).allocated
    assert parts["communication"] == 5e8 * 4
    assert parts["gradients"] == 2 * 4 * parameters / 4
    # The moments are those of the fp32 copy, whatever the adapter is in.
    narrow = training_memory(replace(ZERO_3, strategy="zero2", adapter_bytes=2)).allocated
    assert narrow["optimiser"] == parts["optimiser"]


def test_page_locked_memory_is_rounded_up_to_powers_of_two() -> None:
    shape = ModelShape(2, 1024, 3 * 1024, 8, 8, 128, 1024, tied_embeddings=True)
    # q, k, v, o and the table: 2^21 bytes each; three of 3 x 2^21, rounded up to 4 x 2^21.
    assert pinned_bytes(shape, 2.0, 1) == 2 * (4 * 2**21 + 3 * 2**23) + 2**21
    assert pinned_bytes(shape, 2.0, 4) == pinned_bytes(shape, 2.0, 1) / 4


@pytest.mark.parametrize(
    ("offload", "host_gib"),
    [
        ("none", 8 * 4 + 131.4),
        ("optimizer", 8 * 4 + 131.4),
        ("parameters", 8 * (4 + 18.7)),  # page-locked parts, rounded up, outweigh the one copy they are cut from
    ],
)
def test_gpu_and_host_follow_the_jobs_offload(offload: str, host_gib: float) -> None:
    deepspeed = {"stage": 3, "offload": offload}
    compute = {"pool": "a100", "strategy": "deepspeed", "deepspeed": deepspeed, "gpusPerNode": 8}
    job = job_dict(method={"type": "lora"}, compute=compute, training={"microBatchSize": 1, "globalBatchSize": 8})
    status = planned(prepared("Llama-3.1-70B", 1024), job, gpuPod={"cpu": "8", "memory": "200Gi"}).status
    known = status.forecast
    assert known is not None
    assert status.plan is not None
    assert status.plan.offload == offload
    train = next(stage for stage in known.stages if stage.stage == "train")
    names = {share.component for share in train.components}
    assert ("weights" in names) is (offload != "parameters")
    assert ("optimiser" in names) is (offload == "none")
    assert known.host_memory_gib == pytest.approx(host_gib, rel=0.02)


def test_one_gpu_with_everything_offloaded_needs_the_host_for_the_whole_base() -> None:
    compute = {"pool": "a100", "strategy": "deepspeed", "deepspeed": {"offload": "parameters"}}
    job = job_dict(method={"type": "lora"}, compute=compute)
    known = planned(prepared("Llama-3.1-8B", 1024), job, gpuPod={"cpu": "8", "memory": "16Gi"}).status.forecast
    assert known is not None
    assert known.host_memory_gib == pytest.approx(4 + 15.9, abs=3.0)
    assert any(note.startswith("host memory: about") for note in known.notes)
