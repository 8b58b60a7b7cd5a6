"""How many GPUs are recommended: what fits, what is cheapest, what ends in time."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.job.status import Resolved
from finetune_api.stages import PrepareResult
from finetune_operator.planner.families import facts_of_shape
from finetune_operator.planner.options import Option, gpu_counts, options, reason, recommended
from tests.decide.world import PREPARED, STORAGE, job_dict, pool

ROOMY = {"cpu": "16", "memory": "1024Gi"}


def case(
    model: str, memory_gib: float, gpus_per_node: int = 8, gpu: str = "A100-80", **sections: Any
) -> tuple[FineTuneJobSpec, Resolved, PrepareResult]:
    facts = facts_of_shape(model).model_copy(update={"context_length": 131072}).to_wire()
    rows = {"train": 20_000, "validation": 500, "test": 400}
    result = PREPARED | {
        "model": facts,
        "rows": rows,
        "trainTokens": 20_000 * 500,
        "lengths": {"p50": 400, "p95": 1500, "maximum": 2048},
    }
    offered = pool(gpusPerNode=gpus_per_node, gpuMemoryGib=memory_gib, gpuModel=gpu, gpuPod=ROOMY, scratchSize="2Ti")
    resolved = Resolved.from_wire(
        {"pool": "a100", "poolSpec": offered.spec.to_wire(), "gpusPerNode": 1, "storage": STORAGE}
    )
    return FineTuneJobSpec.from_wire(job_dict(**sections)["spec"]), resolved, PrepareResult.from_wire(result)


def looked_at(*arguments: Any, **sections: Any) -> tuple[FineTuneJobSpec, list[Option]]:
    spec, resolved, prepared = case(*arguments, **sections)
    return spec, list(options(spec, resolved, prepared))


@pytest.mark.parametrize(
    ("per_node", "batch", "nodes", "counts"),
    [(8, 16, 1, [1, 2, 4, 8]), (8, 12, 1, [1, 2, 4]), (4, 16, 1, [1, 2, 4]), (8, 16, 4, [1, 2, 4]), (1, 16, 1, [1])],
)
def test_counts_divide_the_global_batch(per_node: int, batch: int, nodes: int, counts: list[int]) -> None:
    spec, resolved, _ = case(
        "Llama-3.1-8B", 80, per_node, training={"globalBatchSize": batch}, compute={"nodes": nodes}
    )
    assert gpu_counts(spec, resolved) == counts


def test_one_gpu_is_cheapest_where_it_fits_and_ends_in_time() -> None:
    spec, found = looked_at("Llama-3.1-8B", 80)
    best = recommended(spec, found)
    assert best is not None
    assert (best.gpus_per_node, best.plan.strategy) == (1, "single")
    words = reason(spec, found, best)
    assert "the fewest GPU hours" in words
    assert "of the time for" in words


def test_more_gpus_where_one_takes_too_long() -> None:
    spec, found = looked_at("Llama-3.1-8B", 80, compute={"maxDuration": "24h"})
    slowest = max(option.seconds or 0.0 for option in found)
    hours = max(1, int(slowest / 3600 * 0.7))
    tight, again = looked_at("Llama-3.1-8B", 80, compute={"maxDuration": f"{hours}h"})
    best = recommended(tight, again)
    assert best is not None
    assert best.gpus_per_node > 1
    assert (best.seconds or 0.0) <= hours * 3600
    assert "fewer take longer than compute.maxDuration" in reason(tight, again, best)
    assert spec.compute.max_duration == "24h"


def test_all_too_slow_is_still_an_answer() -> None:
    spec, found = looked_at("Llama-3.1-8B", 80, compute={"maxDuration": "1m"})
    assert recommended(spec, found) is not None


def test_nothing_is_recommended_where_nothing_fits() -> None:
    spec, found = looked_at("Llama-3.1-70B", 24, gpu="RTX-4090", method={"type": "lora"})
    assert recommended(spec, found) is None
    assert all(not option.fits for option in found)


def test_an_unknown_gpu_is_recommended_by_what_fits_alone() -> None:
    spec, found = looked_at("Llama-3.1-8B", 80, 8, "Secret-1")
    best = recommended(spec, found)
    assert best is not None
    assert (best.gpus_per_node, best.seconds, best.gpu_seconds) == (1, None, None)


def test_the_times_of_evaluation_fall_with_the_gpus_of_the_pod() -> None:
    _, found = looked_at("Llama-3.1-8B", 80)
    times = [next(s.seconds_high or 0.0 for s in o.forecast.stages if s.stage == "baseline") for o in found]
    assert times == sorted(times, reverse=True)
    assert times[-1] < 0.7 * times[0]


@pytest.mark.parametrize(
    ("model", "memory_gib", "words"),
    [("Mistral-7B", 24, "1 per node may not"), ("Llama-2-70B", 80, "2 per node would not")],
)
def test_fewer_gpus_that_are_tight_may_not_hold_it(model: str, memory_gib: int, words: str) -> None:
    spec, found = looked_at(model, memory_gib, method={"type": "lora"})
    best = recommended(spec, found)
    assert best is not None
    assert words in reason(spec, found, best)
