"""Whether a plan compiles: where it is asked for and can be done, or where published gains win the compilation back."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api.job.spec import FineTuneJobSpec
from finetune_operator.planner.compiling import LEAST_GAIN, LONGEST_COMPILATION_S, SHORTEST_TRAINING_S, compiles
from finetune_operator.planner.plan import make_plan
from finetune_operator.planner.steps import PlanError
from tests.decide.test_method_plan import KNOWN, planned
from tests.decide.test_planner import resolved
from tests.decide.world import job_dict

HOUR_S = 3600.0
PLAN = planned().model_copy(update={"strategy": "ddp", "gpus_per_node": 2, "packing": True})


def asked(torch_compile: str, **spec: Any) -> FineTuneJobSpec:
    return FineTuneJobSpec.from_wire(job_dict(training={"torchCompile": torch_compile}, **spec)["spec"])


@pytest.mark.parametrize(
    ("changes", "seconds", "does", "why"),
    [
        ({}, HOUR_S, True, "60 min at the least: the compilation is won back"),
        ({}, HOUR_S - 1, False, "too short to win back the compilation"),
        ({}, None, False, "how long training takes is not known"),
        ({"packing": False}, HOUR_S, False, "rows are not packed"),
        ({"gpus_per_node": 0}, HOUR_S, False, "on a CPU it seldom pays"),
        ({"strategy": "fsdp"}, HOUR_S, False, "blocks in parts are not compiled, and the strategy is fsdp"),
        ({"strategy": "deepspeed"}, HOUR_S, False, "the strategy is deepspeed"),
    ],
)
def test_auto_compiles_where_published_gains_win_it_back(
    changes: dict[str, Any], seconds: float | None, does: bool, why: str
) -> None:
    found, reason = compiles(asked("auto"), KNOWN.model, PLAN.model_copy(update=changes), seconds)
    assert found == does
    assert why in reason
    off, reason = compiles(asked("disabled"), KNOWN.model, PLAN.model_copy(update=changes), seconds)
    assert (off, reason) == (False, "training.torchCompile: disabled")


def test_the_shortest_training_wins_the_longest_compilation_back_several_times() -> None:
    assert LEAST_GAIN * SHORTEST_TRAINING_S > 4 * LONGEST_COMPILATION_S


@pytest.mark.parametrize(
    ("spec", "plan", "facts", "why"),
    [
        ({}, {"strategy": "fsdp"}, {}, "the strategy is fsdp"),
        ({}, {}, {"experts": 8, "architecture": "MixtralForCausalLM"}, "and MixtralForCausalLM is one"),
    ],
)
def test_what_cannot_be_compiled_is_refused_before_a_gpu_is_held(
    spec: dict[str, Any], plan: dict[str, Any], facts: dict[str, Any], why: str
) -> None:
    model, changed = KNOWN.model.model_copy(update=facts), PLAN.model_copy(update=plan)
    with pytest.raises(PlanError, match=rf"training\.torchCompile: .*{why}; use auto"):
        compiles(asked("enabled", **spec), model, changed, HOUR_S)
    assert compiles(asked("auto", **spec), model, changed, HOUR_S)[0] is False


def test_a_plan_says_whether_it_compiles_and_why() -> None:
    short = planned()
    assert (short.torch_compile, bool(short.torch_compile_reason)) == (False, True)
    many = KNOWN.model_copy(update={"rows": KNOWN.rows.model_copy(update={"train": 2_000_000})})
    assert make_plan(asked("auto"), resolved(1, 80.0), many).torch_compile, "long, packed, on a known GPU"
    wanted = planned(gpus=0, training={"torchCompile": "enabled"})
    assert (wanted.torch_compile, wanted.torch_compile_reason) == (True, "training.torchCompile: enabled")
