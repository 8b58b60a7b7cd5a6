"""Too little host memory for the copy that a pod holds is refused, with the smallest change; an estimate is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from finetune_operator.planner.families import known_shapes
from finetune_operator.planner.fit import Demand, fsdp_of
from finetune_operator.planner.host import certain_bytes
from finetune_operator.planner.memory.breakdown import GIB
from tests.decide.forecast.test_forecast import planned, prepared
from tests.decide.world import job_dict

COPY_GIB = 131.4
"""Of Llama-3.1-70B in 16 bit."""


def _status(memory: str, strategy: str = "fsdp", gpu_gib: float = 80, **method: Any) -> Any:
    job = job_dict(
        method={"type": "lora", **method},
        compute={"pool": "a100", "strategy": strategy, "gpusPerNode": 8},
        training={"globalBatchSize": 16},
    )
    offered = {"gpusPerNode": 8, "gpuMemoryGib": gpu_gib, "gpuPod": {"cpu": "8", "memory": memory}}
    return planned(prepared("Llama-3.1-70B", 512), job, **offered).status


@pytest.mark.parametrize(
    ("memory", "fits", "warned"),
    [
        ("131Gi", "DoesNotFit", False),
        ("132Gi", "Fits", True),  # the copy fits; libraries and their buffers may not
        ("163Gi", "Fits", True),
        ("164Gi", "Fits", False),
    ],
)
def test_only_what_is_certain_is_refused(memory: str, fits: str, warned: bool) -> None:
    status = _status(memory)
    assert status.forecast.fit == fits
    assert status.forecast.host_memory_gib == pytest.approx(8 * 4 + COPY_GIB, abs=0.2)
    assert any(found.message.startswith("host memory:") for found in status.findings) is (warned or fits != "Fits")
    assert (status.phase == "Failed") is (fits == "DoesNotFit")


@pytest.mark.parametrize(
    ("memory", "strategy", "gpu_gib", "remedy"),
    [
        ("64Gi", "fsdp", 80, "Set method.type: qlora, or raise gpuPod.memory of the pool to 164Gi."),
        ("64Gi", "deepspeed", 80, "Set method.type: qlora, or raise gpuPod.memory of the pool to 164Gi."),
        ("64Gi", "fsdp", 180, "Set compute.strategy: ddp, or raise gpuPod.memory of the pool to 164Gi."),
        (
            "32Gi",
            "fsdp",
            80,
            "Set method.type: qlora and compute.strategy: ddp, or raise gpuPod.memory of the pool to 164Gi.",
        ),
        ("32Gi", "fsdp", 30, "Raise gpuPod.memory of the pool to 164Gi."),
    ],
)
def test_the_refusal_names_the_smallest_change(memory: str, strategy: str, gpu_gib: float, remedy: str) -> None:
    status = _status(memory, strategy, gpu_gib)
    assert status.reason == "DoesNotFit"
    assert "one process of a pod holds the whole base in host memory" in status.message
    assert f"131.4 GiB; pods of pool a100 get gpuPod.memory {memory}" in status.message
    assert status.next_step == remedy


@pytest.mark.parametrize(
    ("method", "dora", "copies"), [("lora", False, 1), ("lora", True, 1), ("qlora", False, 1), ("qlora", True, 8)]
)
def test_dora_on_a_quantised_base_is_read_by_every_process(method: Any, dora: bool, copies: int) -> None:
    shape = known_shapes()["Llama-3.1-70B"]
    demand = Demand(shape, method, 16, "all-linear", 0.0, 512, 512, 128, 10, 10, False, False, dora=dora)
    demand = replace(demand, strategy=fsdp_of(method))
    one = (131.4 if method == "lora" else 36.9) * GIB
    assert certain_bytes(demand, 8) == pytest.approx(copies * one, rel=0.01)


@pytest.mark.parametrize(("method", "fits"), [("qlora", "Fits"), ("lora", "DoesNotFit")])
def test_a_quantised_base_needs_less(method: str, fits: str) -> None:
    assert _status("80Gi", type=method).forecast.fit == fits


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_replica_never_needs_the_base_in_host_memory(strategy: str) -> None:
    status = _status("64Gi", strategy, gpu_gib=180)
    assert (status.forecast.fit == "DoesNotFit") is (strategy == "fsdp")
