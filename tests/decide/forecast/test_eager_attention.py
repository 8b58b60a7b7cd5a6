"""Models that only eager attention computes: planned so, and its scores are in the forecast."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.job.status import Forecast, Resolved
from finetune_api.stages import PrepareResult, TrainPlan
from finetune_operator.planner.families import facts_of_shape, known_shapes
from finetune_operator.planner.forecast import forecast
from finetune_operator.planner.memory.attention import score_bytes
from finetune_operator.planner.memory.training import TrainingSetup, training_memory
from finetune_operator.planner.plan import make_plan
from finetune_operator.planner.shape import needs_eager
from tests.decide.world import PREPARED, STORAGE, job_dict, pool


def planned(family: str, longest: int = 2048, **spec: Any) -> tuple[TrainPlan, Forecast]:
    facts = facts_of_shape(family).model_copy(update={"context_length": 131072}).to_wire()
    lengths = {"p50": longest // 4, "p95": longest // 2, "maximum": longest}
    rows = PREPARED["rows"] | {"train": 10_000}
    prepared = PrepareResult.from_wire(PREPARED | {"model": facts, "lengths": lengths, "rows": rows})
    job = FineTuneJobSpec.from_wire(job_dict(**{"training": {"maxLength": longest}} | spec)["spec"])
    resolved = Resolved(
        pool="a100",
        pool_spec=pool().spec,
        gpus_per_node=1,
        storage=STORAGE,
    )
    plan = make_plan(job, resolved, prepared)
    return plan, forecast(job, resolved, prepared, plan)


def scores(known: Forecast, stage: str) -> float:
    parts = next(item for item in known.stages if item.stage == stage).components
    return next((part.gib for part in parts if part.component == "attentionScores"), 0.0)


@pytest.mark.parametrize(
    ("architecture", "only"),
    [
        ("Gemma2ForCausalLM", True),
        ("GptOssForCausalLM", True),
        ("Gemma-2-9B", True),
        ("Gemma3ForCausalLM", False),
        ("GemmaForCausalLM", False),
        ("LlamaForCausalLM", False),
    ],
)
def test_which_models_need_it(architecture: str, *, only: bool) -> None:
    assert needs_eager(architecture) is only


def test_auto_takes_it_for_a_model_that_needs_it_and_packs_only_on_request() -> None:
    plan, known = planned("Gemma-2-9B")
    assert (plan.attention, plan.packing) == ("eager", False)
    assert scores(known, "train") > 0
    assert planned("Gemma-2-9B", training={"packing": "enabled", "maxLength": 2048})[0].packing
    other, unaffected = planned("Llama-3.1-8B")
    assert (other.attention, other.packing) == ("flash", True)
    assert [scores(unaffected, stage.stage) for stage in unaffected.stages] == [0, 0, 0]


def test_what_the_spec_names_is_kept() -> None:
    model = {"source": "hf://meta-llama/Llama-3.1-8B", "attention": "eager"}
    plan, known = planned("Llama-3.1-8B", model=model)
    assert plan.attention == "eager"
    assert scores(known, "evaluate") > 0


def test_scores_grow_with_the_square_of_the_row() -> None:
    assert score_bytes(32, 4096, 4096, blocks=1) == 32 * 4096**2 * 18
    assert score_bytes(32, 2048, 2 * 2048) == 32 * 2048 * 4096 * 8
    assert score_bytes(8, 1024, 1024, blocks=26) == 8 * 1024**2 * (26 * 8 + 10)
    setup = TrainingSetup(known_shapes()["Gemma-2-9B"], "nf4-double", 16, 2, 4096, attention="eager")
    held = training_memory(setup).allocated["attentionScores"]
    assert held == score_bytes(16, 4096, 2 * 4096, blocks=1)
    assert training_memory(replace(setup, packed=True)).allocated["attentionScores"] == 2 * held
    kept = training_memory(replace(setup, checkpointing=False)).allocated["attentionScores"]
    assert kept == score_bytes(16, 4096, 2 * 4096, blocks=42)
    assert "attentionScores" not in training_memory(replace(setup, attention="sdpa")).allocated
