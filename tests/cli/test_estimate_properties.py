"""What `finetune estimate` says holds for any job: more needs more, and what it names does fit."""

from __future__ import annotations

import re
from copy import deepcopy
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from finetune_api.finetunejob import FineTuneJob
from finetune_api.gpupool import GPUPool
from finetune_cli.estimate.compare import PoolEstimate, estimate
from finetune_cli.estimate.data import Counted, prepared
from finetune_operator.planner.families import facts_of_shape, known_shapes

KIND = {"apiVersion": "finetune.dev/v1alpha1"}
ROWS = 3000
Spec = dict[str, Any]


def ask(model: str, spec: Spec, pool: Spec, mean: int) -> PoolEstimate:
    """The estimate of a job on one pool; rows of up to half as many tokens more than the mean."""
    job = FineTuneJob.from_wire(KIND | {"kind": "FineTuneJob", "metadata": {"name": "j"}, "spec": spec})
    roomy = {"image": "runner:1", "gpuPod": {"cpu": "8", "memory": "4000Gi"}}
    offered = KIND | {"kind": "GPUPool", "metadata": {"name": "p"}, "spec": roomy | pool}
    facts = facts_of_shape(model).model_copy(update={"context_length": 131_072})
    counted = Counted(ROWS, (mean // 2, mean, mean + mean // 2), "given")
    return estimate(job, prepared(job.spec, facts, counted), GPUPool.from_wire(offered))


def job_of(method: Spec, training: Spec, **sections: Spec) -> Spec:
    """A spec with what every job has."""
    return {
        "model": {"source": "hf://a/b"},
        "data": {"train": [{"source": "s3://team/a.jsonl"}]},
        "method": method,
        "training": training,
        "output": {"adapterRef": {"name": "j"}},
        **sections,
    }


MODELS = st.sampled_from(sorted(known_shapes()))
LENGTHS = st.sampled_from([64, 300, 1024, 2048, 4096, 16_384, 131_072])


@st.composite
def jobs(draw: st.DrawFn) -> Spec:
    """Jobs that the contract accepts."""
    objective = draw(st.sampled_from(["sft", "dpo", "kto"]))
    kind = draw(st.sampled_from(["auto", "lora", "qlora"]))
    method: Spec = {"type": kind, "objective": objective, "rank": draw(st.sampled_from([4, 16, 64, 256]))}
    method["dropout"] = draw(st.sampled_from([0, 0.1]))
    if kind == "qlora" and draw(st.booleans()):
        method["bits"] = 8
    elif draw(st.booleans()):
        method["useDora"] = True
    training: Spec = {
        "maxLength": draw(LENGTHS),
        "globalBatchSize": draw(st.sampled_from([16, 64])),
        "gradientCheckpointing": draw(st.sampled_from(["auto", "enabled", "disabled"])),
    }
    if draw(st.booleans()):
        training["microBatchSize"] = draw(st.sampled_from([1, 2, 4, 8]))
    if kind == "lora" and draw(st.booleans()):
        training["precision"] = "fp32"
    compute: Spec = {"gpusPerNode": draw(st.sampled_from([1, 2, 4])), "nodes": draw(st.sampled_from([1, 2]))}
    whole = ["auto", "ddp"]  # 8-bit weights are not cut
    strategy = draw(st.sampled_from(whole if "bits" in method else [*whole, "fsdp", "deepspeed"]))
    compute["strategy"] = strategy
    if strategy == "deepspeed":
        compute["deepspeed"] = {"stage": 3, "offload": draw(st.sampled_from(["none", "optimizer", "parameters"]))}
    spec = job_of(method, training, compute=compute)
    spec["evaluation"] = {
        "maxNewTokens": draw(st.sampled_from([16, 512, 4096])),
        "fewShot": draw(st.sampled_from([0, 3])),
    }
    if "useDora" in method or draw(st.booleans()):
        spec["output"] |= {"servedAs": "merged"}
    return spec


def edited(spec: Spec, words: str) -> Spec:
    """The spec after edits such as `method.type: qlora and training.maxLength: 512`."""
    changed = deepcopy(spec)
    for section, field, value in re.findall(r"(\w+)\.(\w+): (\w+)", words):
        known = {"false": False, "true": True}
        changed.setdefault(section, {})[field] = int(value) if value.isdigit() else known.get(value, value)
    return changed


@settings(max_examples=120, deadline=None)
@given(MODELS, jobs(), st.sampled_from([8, 16, 24, 48, 80, 141]), st.sampled_from([1, 2, 8]), st.data())
def test_what_a_refusal_names_does_fit(model: str, spec: Spec, gib: int, per_node: int, data: st.DataObject) -> None:
    pool = {"gpuMemoryGib": gib, "gpusPerNode": per_node}
    mean = max(16, round(spec["training"]["maxLength"] * data.draw(st.sampled_from([0.3, 1.0]))))
    said = ask(model, spec, pool, mean)
    assume(said.forecast is not None and said.forecast.fit == "DoesNotFit")
    assert said.remedy

    def fits(changed: Spec, offered: Spec = pool) -> None:
        followed = ask(model, changed, offered, mean)
        assert followed.fits, (said.remedy, followed.why_not, followed.forecast and followed.forecast.notes)

    if edit := re.match(r"set (.*?)(?:, or|;|$)", said.remedy):
        fits(edited(spec, edit[1]))
    if size := re.search(r"a pool whose GPUs have (\d+) GiB", said.remedy):
        fits(spec, pool | {"gpuMemoryGib": int(size[1])})
    if gpus := re.search(r"or (\d+) GPUs(?: on (\d+) nodes)? with compute\.strategy: fsdp", said.remedy):
        nodes = int(gpus[2] or 1)
        shared = {"gpusPerNode": int(gpus[1]) // nodes, "nodes": nodes, "strategy": "fsdp"}
        fits({**spec, "compute": shared})


def largest_gib(model: str, spec: Spec, mean: int) -> float:
    """Memory of the largest stage."""
    said = ask(model, spec, {"gpuMemoryGib": 1024, "gpusPerNode": 16}, mean)
    assert said.forecast is not None, said.why_not
    assert said.forecast.gpu_memory_gib is not None
    return said.forecast.gpu_memory_gib


@settings(max_examples=60, deadline=None)
@given(
    MODELS,
    st.sampled_from(["lora", "qlora"]),
    st.sampled_from(["sft", "dpo", "kto"]),
    st.integers(1, 128),
    st.integers(16, 32_768),
    st.integers(1, 8),
)
def test_more_of_anything_needs_no_less_memory(
    model: str, method: str, objective: str, rank: int, length: int, micro: int
) -> None:
    def need(**changes: Any) -> float:
        asked = {"rank": rank, "length": length, "micro": micro, "checkpointing": "enabled", "dropout": 0.0} | changes
        training = {
            "maxLength": asked["length"],
            "microBatchSize": asked["micro"],
            "globalBatchSize": asked["micro"],
            "gradientCheckpointing": asked["checkpointing"],
        }
        how = {"type": method, "objective": objective, "rank": asked["rank"], "dropout": asked["dropout"]}
        return largest_gib(model, job_of(how, training), asked["length"])

    least = need()
    assert least <= need(rank=rank * 2)
    assert least <= need(length=length + 1)
    assert least <= need(length=length * 2)
    assert least <= need(micro=micro + 1)
    assert least <= need(dropout=0.1)
    assert least <= need(checkpointing="disabled")


@settings(max_examples=40, deadline=None)
@given(
    MODELS,
    st.sampled_from([("lora", "fsdp"), ("qlora", "fsdp"), ("lora", "deepspeed"), ("qlora", "deepspeed")]),
    st.sampled_from([2, 4, 8]),
    st.integers(16, 8192),
)
def test_twice_the_gpus_that_share_a_model_need_no_more_each(
    model: str, how: tuple[str, str], gpus: int, length: int
) -> None:
    def step_gib(count: int) -> float:
        compute = {"gpusPerNode": count, "strategy": how[1]}
        training = {"maxLength": length, "microBatchSize": 1, "globalBatchSize": 16}
        spec = job_of({"type": how[0]}, training | {"gradientCheckpointing": "enabled"}, compute=compute)
        said = ask(model, spec, {"gpuMemoryGib": 1024, "gpusPerNode": 16}, length)
        assert said.forecast is not None, said.why_not
        (train,) = [stage for stage in said.forecast.stages if stage.stage == "train"]
        return next(moment.gpu_memory_gib for moment in train.moments if moment.moment == "step")

    assert step_gib(gpus * 2) <= step_gib(gpus)
