"""A base that does not fit one GPU is spread over those of a pod where it is judged, or the job is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.job.status import FineTuneJobStatus
from finetune_operator.planner.families import known_shapes
from finetune_operator.planner.memory.spreading import blocks_on_a_gpu, spread_weight_bytes, spreads
from finetune_operator.planner.memory.weights import weight_bytes
from tests.decide.forecast.test_forecast import planned, prepared
from tests.decide.world import job_dict

SHAPES = sorted(known_shapes())
ROOMY: dict[str, Any] = {"gpuPod": {"cpu": "64", "memory": "2000Gi"}, "scratchSize": "900Gi", "gpusPerNode": 8}


@given(st.sampled_from(SHAPES), st.sampled_from([1, 2, 4, 8]), st.sampled_from(["none", "fp32", "int8", "nf4-double"]))
def test_no_part_is_more_than_the_whole_or_less_than_its_share(name: str, gpus: int, quantisation: Any) -> None:
    shape = known_shapes()[name]
    whole, part = weight_bytes(shape, quantisation), spread_weight_bytes(shape, quantisation, gpus)
    assert whole / gpus <= part <= whole
    assert (part == whole) or gpus > 1
    assert shape.layers / gpus <= blocks_on_a_gpu(shape, gpus) <= shape.layers


def test_what_accelerate_cannot_cut_is_not_planned() -> None:
    small = known_shapes()["Qwen2.5-0.5B"]  # half of it is the embedding
    assert spreads(small, 1)
    assert spreads(small, 2)
    assert not spreads(small, 8)
    assert spreads(known_shapes()["Llama-3.1-70B"], 8)


def status_of(model: str, method: dict[str, Any], gpus: int, memory_gib: float, **sections: Any) -> FineTuneJobStatus:
    compute = {"pool": "a100", "gpusPerNode": gpus} | sections.pop("compute", {})
    job = job_dict(method=method, compute=compute, **sections)
    return planned(prepared(model, 1024), job, gpuMemoryGib=memory_gib, **ROOMY).status


@pytest.mark.parametrize(
    ("model", "method", "gpus", "memory_gib", "spread"),
    [
        ("Llama-3.1-8B", {"type": "lora"}, 8, 80, 1),
        ("Llama-3.1-70B", {"type": "lora"}, 8, 80, 2),
        ("Llama-3.1-70B", {"type": "lora"}, 8, 141, 2),
        ("Llama-3.1-70B", {"type": "lora"}, 4, 141, 2),
        ("Llama-3.1-70B", {"type": "qlora"}, 8, 80, 1),
        ("Llama-3.1-70B", {"type": "qlora"}, 8, 40, 2),
    ],
)
def test_a_copy_takes_the_fewest_gpus_that_hold_it(
    model: str, method: dict[str, Any], gpus: int, memory_gib: float, spread: int
) -> None:
    status = status_of(model, method, gpus, memory_gib)
    assert status.phase == "Baseline"
    assert status.plan is not None
    assert status.plan.judging_gpus == spread
    assert status.forecast is not None
    assert status.forecast.fit == "Fits"
    told = [note for note in status.forecast.notes if "spread the base over" in note]
    assert len(told) == (1 if spread > 1 else 0)


@pytest.mark.parametrize(
    ("gpus", "compute", "remedy"),
    [
        # Training with parameters in host memory fits one GPU; baseline and evaluate do not.
        (1, {"strategy": "deepspeed", "deepspeed": {"offload": "parameters"}}, "4 GPUs with compute.strategy: fsdp"),
        (1, {}, "4 GPUs with compute.strategy: fsdp"),
        (2, {"strategy": "ddp"}, "4 GPUs with compute.strategy: fsdp"),
    ],
)
def test_what_cannot_be_judged_is_refused_with_the_gpus_that_would_do(
    gpus: int, compute: dict[str, Any], remedy: str
) -> None:
    status = status_of("Llama-3.1-70B", {"type": "lora"}, gpus, 80, compute=compute)
    assert (status.phase, status.reason) == ("Failed", "DoesNotFit")
    assert "method.type: qlora" in status.next_step
    assert remedy in status.next_step


def test_the_gpus_that_are_named_do_fit() -> None:
    status = status_of("Llama-3.1-70B", {"type": "lora"}, 4, 80, compute={"strategy": "fsdp"})
    assert status.phase == "Baseline"
    assert status.forecast is not None
    assert status.forecast.fit == "Fits"


def test_pods_of_one_gpu_cannot_spread_a_base() -> None:
    job = job_dict(method={"type": "lora"}, compute={"pool": "a100", "nodes": 8, "strategy": "fsdp"})
    offered = ROOMY | {"gpusPerNode": 1}
    status = planned(prepared("Llama-3.1-70B", 1024), job, gpuMemoryGib=80, **offered).status
    assert status.reason == "DoesNotFit"
    assert re.match("does not fit: (baseline|evaluate) with lora needs", status.message)
    assert "GPUs of the pool together are not enough either" in status.next_step


def test_vllm_spreads_over_every_gpu_by_itself() -> None:
    status = status_of("Llama-3.1-8B", {"type": "lora"}, 4, 80, evaluation={"engine": "vllm"})
    assert status.plan is not None
    assert status.plan.judging_gpus == 4
    assert status.forecast is not None
    assert not any("spread the base" in note for note in status.forecast.notes)


@pytest.mark.parametrize(("method", "spread"), [("lora", 4), ("qlora", 1)])
def test_a_mixture_of_experts_is_spread_by_its_size_alone(method: str, spread: int) -> None:
    # Mixtral 8x7B: 93 GB in 16 bit; its shape is not forecast.
    facts: dict[str, Any] = prepared("Mistral-7B")["model"] | {"parameters": 46_702_792_704, "experts": 8}
    job = job_dict(method={"type": method}, compute={"pool": "a100", "gpusPerNode": 4})
    status = planned(prepared("Mistral-7B", model=facts), job, gpuMemoryGib=40, **ROOMY).status
    assert status.plan is not None
    assert status.forecast is not None
    assert status.forecast.fit == "Unknown"
    assert status.plan.judging_gpus == spread


def test_an_edit_and_gpus_are_named_together_where_neither_is_enough() -> None:
    status = status_of("Llama-2-70B", {"type": "lora"}, 1, 24)
    remedy = (
        "Set method.type: qlora, compute.strategy: fsdp and compute.gpusPerNode: 8, or use a pool whose GPUs have 180"
    )
    assert status.next_step.startswith(remedy)
    followed = status_of("Llama-2-70B", {"type": "qlora"}, 8, 24, compute={"strategy": "fsdp"})
    assert followed.forecast is not None
    assert followed.forecast.fit == "Fits"
    for gpus, strategy in ((2, "fsdp"), (8, "ddp")):
        alone = status_of("Llama-2-70B", {"type": "qlora"}, gpus, 24, compute={"strategy": strategy})
        assert alone.reason == "DoesNotFit"


@pytest.mark.parametrize(
    ("kind", "served", "what"), [("qlora", "merged", "its merged form"), ("lora", "adapter", "it")]
)
def test_what_is_spread_is_said(kind: str, served: str, what: str) -> None:
    output = {"adapterRef": {"name": "triage"}, "servedAs": served}
    status = status_of("Llama-3.1-70B", {"type": kind}, 8, 80, output=output)
    assert status.forecast is not None
    assert any(f"GPUs of a pod: {what} does not fit on one" in note for note in status.forecast.notes)
