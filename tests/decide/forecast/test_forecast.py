"""What Planned says of memory, time and cost, and what it refuses."""

from __future__ import annotations

import re
from statistics import NormalDist
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.job.status import Resolved
from finetune_api.stages import PrepareResult
from finetune_operator.planner.families import facts_of_shape
from finetune_operator.planner.forecast import forecast
from finetune_operator.planner.gain import minimum_detectable_gain
from finetune_operator.planner.gpus import gpu_of
from finetune_operator.planner.plan import PlanError, make_plan
from tests.decide.world import PREPARED, STORAGE, TRAINED, World, job_dict, pool

PRICE = {"gpuPerHour": 2.0, "currency": "EUR"}
ROOMY = {"cpu": "8", "memory": "400Gi"}


def prepared(model: str, longest: int = 2048, /, **changes: Any) -> dict[str, Any]:
    """PREPARED with a known model and rows up to `longest` tokens."""
    facts = facts_of_shape(model).model_copy(update={"context_length": 131072}).to_wire()
    lengths = {"p50": longest // 4, "p95": longest // 2, "maximum": longest}
    return PREPARED | {"model": facts, "lengths": lengths} | changes


def planned(result: dict[str, Any], job: dict[str, Any] | None = None, **pool_spec: Any) -> World:
    """A world just after prepare."""
    world = World(job, pools=(pool(**pool_spec),))
    world.settle()
    world.succeed(result)
    return world


def test_the_forecast_is_in_the_status_when_planned() -> None:
    known = planned(prepared("Llama-3.1-8B"), price=PRICE).status.forecast
    assert known is not None
    assert known.fit == "Fits"
    assert [stage.stage for stage in known.stages] == ["baseline", "train", "evaluate"]
    assert known.gpu_memory_gib == max(stage.gpu_memory_gib for stage in known.stages)
    assert known.available_gpu_memory_gib == 80
    assert known.train_seconds_low is not None
    assert known.train_seconds_high is not None
    assert 0 < known.train_seconds_low < known.train_seconds_high
    assert known.cost_low is not None
    assert known.cost_high is not None
    assert 0 < known.cost_low < known.cost_high
    assert (known.currency, known.gpu_model) == ("EUR", "A100-80")
    assert known.minimum_detectable_gain == pytest.approx(0.0879, abs=1e-3)
    assert known.host_memory_gib is not None
    assert known.host_memory_gib > 8  # libraries, and a file that is being read
    for stage in known.stages:
        parts = sum(share.gib for share in stage.components)
        assert parts == pytest.approx(stage.gpu_memory_gib, abs=0.15)


def test_a_measurement_joins_the_forecast() -> None:
    world = World()
    world.run_to("train")
    world.succeed(TRAINED | {"peakMemoryBytes": 21 * 2**30, "durationSeconds": 1234.5})
    known = world.status.forecast
    assert known is not None
    assert (known.measured_gpu_memory_gib, known.measured_host_memory_gib) == (21.0, None)
    assert known.measured_train_seconds == 1234.5
    assert known.stages


def test_on_a_cpu_the_resident_set_is_measured() -> None:
    world = World(pools=(pool(gpusPerNode=0, gpuMemoryGib=0),))
    world.run_to("train")
    world.succeed(TRAINED | {"peakMemoryBytes": 3 * 2**30})
    known = world.status.forecast
    assert known is not None
    assert (known.measured_gpu_memory_gib, known.measured_host_memory_gib) == (None, 3.0)


@pytest.mark.parametrize(
    ("model", "method", "memory_gib", "message", "remedy"),
    [
        ("Llama-3.1-70B", "lora", 80, "needs 1[0-9]{2}\\.[0-9] GiB", "Set method.type: qlora, or use a pool"),
        ("Llama-3.1-70B", "qlora", 24, "weights 36.8", "No setting is enough: use a smaller model"),
        ("Llama-3.1-8B", "lora", 14, "weights 15.0", "Set "),
    ],
)
def test_what_cannot_fit_is_refused_before_a_gpu_is_held(
    model: str, method: str, memory_gib: float, message: str, remedy: str
) -> None:
    world = planned(prepared(model, 1024), job_dict(method={"type": method}), gpuMemoryGib=memory_gib)
    status = world.status
    assert (status.phase, status.reason) == ("Failed", "DoesNotFit")
    assert status.message.startswith("does not fit: ")
    assert re.search(message, status.message)
    assert status.next_step.startswith(remedy)
    assert status.forecast is not None
    assert status.forecast.fit == "DoesNotFit"
    assert [start.task.stage for start in world.started] == ["prepare"]
    assert all(start.gpus_per_node == 0 for start in world.started)


def test_a_shorter_length_is_named_when_it_is_enough() -> None:
    job = job_dict(method={"type": "qlora"}, training={"maxLength": 65536})
    world = planned(
        prepared("Llama-3.1-8B", 65536, lengths={"p50": 500, "p95": 1500, "maximum": 65536}), job, gpuMemoryGib=24
    )
    assert world.status.reason == "DoesNotFit"
    assert "training.maxLength: " in world.status.next_step
    assert "method.type" not in world.status.next_step


@pytest.mark.parametrize(
    ("model", "method", "length", "memory_gib"),
    [
        ("Llama-3.1-70B", "lora", 2048, 80),
        ("Llama-3.1-8B", "lora", 1024, 14),
        ("Llama-3.1-8B", "qlora", 65536, 24),
        ("Mistral-7B", "lora", 16384, 16),
    ],
)
def test_the_smallest_change_that_is_named_does_fit(model: str, method: str, length: int, memory_gib: float) -> None:
    job = job_dict(method={"type": method}, training={"maxLength": length})
    refused = planned(prepared(model, length), job, gpuMemoryGib=memory_gib).status
    assert refused.reason == "DoesNotFit"
    edits = dict(re.findall(r"(\w+\.\w+): (\w+)", refused.next_step.split(", or")[0]))
    assert edits
    for path, value in edits.items():
        section, field = path.split(".")
        job["spec"][section] |= {field: int(value) if value.isdigit() else value}
    cut = prepared(model, min(length, job["spec"]["training"]["maxLength"]))
    followed = planned(cut, job, gpuMemoryGib=memory_gib).status
    assert (followed.phase, followed.forecast.fit if followed.forecast else "") == ("Baseline", "Fits")


@pytest.mark.parametrize(
    ("result", "pool_spec"),
    [
        (prepared("Llama-3.1-70B"), {"gpusPerNode": 0, "gpuMemoryGib": 0}),
        (
            PREPARED | {"model": {"architecture": "MixtralForCausalLM", "parameters": 46_700_000_000}},
            {"gpuMemoryGib": 8},
        ),
    ],
    ids=["a pool without GPUs", "a model whose shape is not known"],
)
def test_nothing_is_refused_without_knowledge(result: dict[str, Any], pool_spec: dict[str, Any]) -> None:
    status = planned(result, **pool_spec).status
    assert status.phase == "Baseline"
    assert status.forecast is not None
    assert (status.forecast.fit, status.forecast.gpu_memory_gib) == ("Unknown", None)
    warned = [finding for finding in status.findings if finding.check == "forecast"]
    assert len(warned) == (1 if pool_spec["gpuMemoryGib"] else 0)


def test_a_budget_below_the_forecast_warns_and_does_not_refuse() -> None:
    job = job_dict(compute={"pool": "a100", "maxCost": 0.01}, training={"epochs": 50.0})
    status = planned(prepared("Llama-3.1-8B"), job, price=PRICE).status
    assert status.phase == "Baseline"
    warnings = [finding.message for finding in status.findings if finding.check == "forecast"]
    assert len(warnings) == 1
    assert "compute.maxCost: 0.01 EUR is below the forecast of " in warnings[0]


def test_a_budget_above_the_forecast_says_nothing() -> None:
    job = job_dict(compute={"pool": "a100", "maxCost": 500.0})
    status = planned(prepared("Llama-3.1-8B"), job, price=PRICE, gpuPod=ROOMY).status
    assert [finding for finding in status.findings if finding.check == "forecast"] == []


@pytest.mark.parametrize(
    ("memory_gib", "host", "scratch", "both"),
    [
        (80, "64Gi", "200Gi", True),
        (12, "64Gi", "200Gi", False),
        (80, "12Gi", "200Gi", False),
        (80, "64Gi", "20Gi", False),
    ],
    ids=["fits", "GPU too small", "host memory too small", "disk too small"],
)
def test_qlora_judges_the_merged_form_where_it_fits(memory_gib: float, host: str, scratch: str, both: bool) -> None:
    job = job_dict(method={"type": "qlora"})
    offered = {"gpuMemoryGib": memory_gib, "gpuPod": {"cpu": "4", "memory": host}, "scratchSize": scratch}
    status = planned(prepared("Llama-3.1-8B", 256), job, **offered).status
    assert status.plan is not None
    assert status.plan.judge_both_forms is both
    assert status.forecast is not None
    assert ("merge" in [stage.stage for stage in status.forecast.stages]) is both
    assert any("only the adapter is judged" in note for note in status.forecast.notes) is not both


@pytest.mark.parametrize(("objective", "gib"), [("sft", 12.0), ("dpo", 24.0)])
def test_the_rows_of_training_count_for_its_disk(objective: str, gib: float) -> None:
    job = job_dict(method={"objective": objective})
    few, many = (
        planned(prepared("Llama-3.1-8B", 256, trainTokens=tokens), job, gpuPod=ROOMY).status.forecast
        for tokens in (1, 2**30)
    )
    assert few is not None
    assert many is not None
    assert few.disk_gib is not None
    assert many.disk_gib is not None
    assert many.disk_gib - few.disk_gib == pytest.approx(gib, abs=0.1)


@pytest.mark.parametrize(
    ("method", "strategy", "gpus", "gib"),
    [
        ("lora", "ddp", 4, 4 * (4 + 4.7)),  # each sends what it reads to its GPU, file by file
        ("lora", "fsdp", 4, 4 * 4 + 131.4),
        ("lora", "deepspeed", 4, 4 * 4 + 131.4),
        ("qlora", "ddp", 4, 4 * (4 + 4.7)),
        ("qlora", "fsdp", 4, 4 * 4 + 4.7 + 36.9),  # the whole 4-bit base, and the file that is being read
        ("qlora", "deepspeed", 2, 2 * 4 + 4.7 + 36.9),
    ],
)
def test_one_process_of_a_pod_holds_the_base_before_it_is_cut(
    method: str, strategy: str, gpus: int, gib: float
) -> None:
    job = job_dict(method={"type": method}, compute={"pool": "a100", "strategy": strategy, "gpusPerNode": gpus})
    offered = {"gpuMemoryGib": 180, "gpuPod": {"cpu": "4", "memory": "140Gi"}, "scratchSize": "90Gi"}
    status = planned(prepared("Llama-3.1-70B", 512), job, **offered).status
    assert status.forecast is not None
    assert status.forecast.host_memory_gib == pytest.approx(gib, rel=0.02)
    told = [finding.message for finding in status.findings if finding.message.startswith("host memory:")]
    assert bool(told) is (gib > 140)
    assert all("whole before it is cut" in message for message in told)
    assert all("gpuPod.memory" in message for message in told)


def _resolved(**pool_spec: Any) -> Resolved:
    offered = pool(**pool_spec)
    wire = {"pool": "x", "poolSpec": offered.spec.to_wire(), "gpusPerNode": 1, "storage": STORAGE}
    return Resolved.from_wire(wire)


@pytest.mark.parametrize(
    ("model", "memory_gib", "method", "micro_batch", "recomputes"),
    [
        ("Llama-3.1-8B", 80, "lora", 8, False),
        ("Llama-3.1-8B", 24, "qlora", 16, True),  # two rows of usual length would not fill the GPU
        ("Llama-3.1-70B", 64, "qlora", 8, True),
    ],
)
def test_method_micro_batch_and_checkpointing_follow_from_memory(
    model: str, memory_gib: float, method: str, micro_batch: int, recomputes: bool
) -> None:
    spec = FineTuneJobSpec.from_wire(job_dict(method={"type": "auto"})["spec"])
    known = PrepareResult.from_wire(prepared(model, 1024))
    resolved = _resolved(gpuMemoryGib=memory_gib)
    plan = make_plan(spec, resolved, known)
    assert (plan.method, plan.micro_batch_size, plan.gradient_checkpointing) == (method, micro_batch, recomputes)
    assert forecast(spec, resolved, known, plan).fit in ("Fits", "Tight")


@pytest.mark.parametrize(("usual", "micro_batch", "recomputes"), [(1024, 2, False), (511, 16, True)])
def test_a_micro_batch_is_judged_by_rows_of_usual_length(usual: int, micro_batch: int, recomputes: bool) -> None:
    """Without recomputation two rows fit, and 4-bit weights want 1,024 tokens of a forward pass."""
    known = PrepareResult.from_wire(prepared("Llama-3.1-8B", 1024))
    known = known.model_copy(update={"lengths": known.lengths.model_copy(update={"p50": usual})})
    spec = FineTuneJobSpec.from_wire(job_dict(method={"type": "qlora"})["spec"])
    plan = make_plan(spec, _resolved(gpuMemoryGib=24), known)
    assert (plan.micro_batch_size, plan.gradient_checkpointing) == (micro_batch, recomputes)


@pytest.mark.parametrize(
    ("spec", "name", "gpu"),
    [
        ({"gpuModel": "H100-80"}, "x", "H100-80"),
        ({"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}}, "x", "A100-80"),
        (
            {"nodeSelector": {"cloud.google.com/gke-accelerator": "nvidia-tesla-a100"}, "gpuMemoryGib": 40},
            "x",
            "A100-40",
        ),
        ({"nodeSelector": {"cloud.google.com/gke-accelerator": "nvidia-l4"}, "gpuMemoryGib": 22.5}, "x", "L4"),
        ({"nodeSelector": {"pool": "big"}}, "h200-pool", "H200"),
        ({"gpuMemoryGib": 40}, "a100", "A100-40"),
        ({"nodeSelector": {"pool": "big"}}, "x", None),
    ],
)
def test_a_pools_gpu_is_recognised(spec: dict[str, Any], name: str, gpu: str | None) -> None:
    found = gpu_of(pool(**spec).spec, name)
    assert (found.name if found else None) == gpu


def test_rows_too_short_to_fill_a_gpu_are_as_fast_on_any() -> None:
    """111 tokens a row: kernels take longer to be started than to run."""
    spec = FineTuneJobSpec.from_wire(job_dict(training={"microBatchSize": 1})["spec"])
    known = PrepareResult.from_wire(prepared("Qwen2.5-0.5B"))
    times = set()
    for gpu in ("A100-80", "H100-80"):
        resolved = _resolved(gpuModel=gpu)
        times.add(forecast(spec, resolved, known, make_plan(spec, resolved, known)).train_seconds_low)
    assert len(times) == 1


def test_a_slower_gpu_and_more_epochs_take_longer() -> None:
    spec = FineTuneJobSpec.from_wire(job_dict()["spec"])
    longer = FineTuneJobSpec.from_wire(job_dict(training={"epochs": 6.0})["spec"])
    known = PrepareResult.from_wire(prepared("Llama-3.1-8B", trainTokens=1_000_000))

    def seconds(asked: FineTuneJobSpec, model: str) -> float:
        resolved = _resolved(gpuModel=model)
        return forecast(asked, resolved, known, make_plan(asked, resolved, known)).train_seconds_high or 0.0

    assert seconds(spec, "A100-80") > seconds(spec, "H100-80")
    assert seconds(longer, "A100-80") > seconds(spec, "A100-80")


@pytest.mark.parametrize(
    ("metric", "rows", "gain"), [("f1", 200, 0.0879), ("exactMatch", 800, 0.044), ("loss", 200, None), ("f1", 0, None)]
)
def test_smallest_detectable_gain(metric: str, rows: int, gain: float | None) -> None:
    found = minimum_detectable_gain(metric, rows)
    assert found == (None if gain is None else pytest.approx(gain, abs=1e-3))


@given(rows=st.integers(1, 100_000))
def test_a_test_of_that_size_finds_that_gain_four_times_out_of_five(rows: int) -> None:
    gain = minimum_detectable_gain("exactMatch", rows)
    assert gain is not None
    # Answers correlated by 0.5: the difference of two shares of one half has the variance of one.
    error = (2 * (1 - 0.5) * 0.25 / rows) ** 0.5
    threshold = NormalDist(0, error).inv_cdf(0.95)
    assert 1 - NormalDist(gain, error).cdf(threshold) == pytest.approx(0.80, abs=1e-3)


@pytest.mark.parametrize(
    ("model", "memory_gib", "gpus", "compute", "strategy"),
    [
        ("Llama-3.1-8B", 80, 1, {}, "single"),
        ("Llama-3.1-8B", 80, 2, {}, "ddp"),
        ("Llama-3.1-70B", 80, 2, {}, "ddp"),
        ("Llama-3.1-70B", 40, 4, {}, "fsdp"),
        ("Llama-3.1-8B", 80, 2, {"strategy": "fsdp"}, "fsdp"),
        ("Llama-3.1-8B", 80, 2, {"strategy": "deepspeed", "deepspeed": {"stage": 2}}, "deepspeed"),
    ],
    ids=["one GPU", "a replica fits", "a 4-bit replica fits", "no replica fits", "fsdp is asked for", "ZeRO-2"],
)
def test_one_gpu_then_replicas_then_shards(
    model: str, memory_gib: float, gpus: int, compute: dict[str, Any], strategy: str
) -> None:
    wire = job_dict(method={"type": "qlora"}, compute={"gpusPerNode": gpus, **compute})["spec"]
    resolved = _resolved(gpuMemoryGib=memory_gib).model_copy(update={"gpus_per_node": gpus})
    plan = make_plan(FineTuneJobSpec.from_wire(wire), resolved, PrepareResult.from_wire(prepared(model, 1024)))
    assert plan.strategy == strategy
    assert plan.zero_stage == compute.get("deepspeed", {}).get("stage", 3)


def test_shards_of_one_gpu_are_refused_with_the_field() -> None:
    wire = job_dict(compute={"strategy": "fsdp"})["spec"]
    with pytest.raises(PlanError, match=r"compute\.strategy: fsdp .* compute\.gpusPerNode"):
        make_plan(FineTuneJobSpec.from_wire(wire), _resolved(), PrepareResult.from_wire(prepared("Llama-3.1-8B", 512)))


@pytest.mark.parametrize(
    ("model", "gpus", "attention"),
    [({}, 1, "flash"), ({"attention": "sdpa"}, 1, "sdpa"), ({"dtype": "fp32"}, 1, "sdpa"), ({}, 0, "sdpa")],
)
def test_flash_is_for_packed_rows_on_a_gpu_in_16_bit(model: dict[str, Any], gpus: int, attention: str) -> None:
    wire = job_dict(model={"source": "hf://a/b", **model}, training={"packing": "enabled"})["spec"]
    resolved = _resolved(gpuMemoryGib=80).model_copy(update={"gpus_per_node": gpus})
    plan = make_plan(FineTuneJobSpec.from_wire(wire), resolved, PrepareResult.from_wire(prepared("Llama-3.1-8B", 512)))
    assert (plan.attention, plan.precision) == (attention, model.get("dtype") or ("bf16" if gpus else "fp32"))


def test_flash_without_a_gpu_is_refused_with_the_field() -> None:
    wire = job_dict(model={"source": "hf://a/b", "attention": "flash"})["spec"]
    resolved = _resolved().model_copy(update={"gpus_per_node": 0})
    with pytest.raises(PlanError, match=r"model\.attention: flash needs a GPU"):
        make_plan(FineTuneJobSpec.from_wire(wire), resolved, PrepareResult.from_wire(prepared("Llama-3.1-8B", 512)))
