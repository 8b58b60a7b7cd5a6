"""Every strategy against one process: losses side by side, whole adapters, resume to the bit. Real processes, gloo."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.stages import TrainPlan
from finetune_runner.training.objectives.kto import class_weights
from finetune_runner.training.reference import require_equal
from finetune_runner.training.strategies.deepspeed import deepspeed_config, refuse_replaced_weights
from tests.runner.preferences import judged
from tests.runner.ranks import BATCH, CASES, CROSSED, STEPS
from tests.runner.refusals import refusal

Facts = dict[str, dict[str, Any]]
KINDS = ("qlora", "dora", "dpo", "kto")
ROOT = Path(__file__).parents[2]


def run_ranks(processes: int, model: Path, *cases: str) -> Facts:
    """What the ranks report of these cases, by default of all."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*command, "-m", "tests.runner.ranks", str(model), *cases],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FACTS ")]
    assert lines, done.stderr[-3000:]
    facts: Facts = json.loads(lines[0].removeprefix("FACTS "))
    return facts


@pytest.fixture(scope="module")
def facts(tiny_model: Path) -> Facts:
    """Of all strategies; printed side by side (`pytest -s`)."""
    found = run_ranks(1, tiny_model) | run_ranks(2, tiny_model)
    for name, of in found.items():
        losses = " ".join(f"{loss:.6f}" for loss in of["losses"])
        print(f"{name:22} losses {losses}  validation {of['validation']:.6f}")
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_strategy_learns_what_one_process_learns(case: str, facts: Facts) -> None:
    kind = case.split()[0]
    quantised = kind == "qlora"
    alone, found = facts[f"{kind} single" if kind in KINDS else "single"], facts[case]
    # NF4 is computed in bf16: another split into micro-batches rounds differently.
    tolerance = 3e-3 if quantised else 1e-5
    assert found["losses"] == pytest.approx(alone["losses"], rel=tolerance)
    assert found["validation"] == pytest.approx(alone["validation"], rel=tolerance)
    # kto weighs its classes: five validation rows are not on the scale of a batch.
    assert (found["losses"][-1] if kind == "kto" else found["validation"]) < found["losses"][0] - 0.1


def test_a_model_that_is_its_own_reference_prefers_nothing(facts: Facts) -> None:
    """By the papers' formulas at a gain of zero: -log sigmoid(0), and a half times the weight of the answer's class."""
    wanted = [bool(row.label) for row in judged(STEPS * BATCH, 3)]
    weights = class_weights(wanted.count(True), wanted.count(False))
    half = sum(weights[0] if one else weights[1] for one in wanted[:BATCH]) / BATCH / 2
    for kind, loss in (("dpo", math.log(2)), ("kto", half)):
        first = [of["losses"][0] for name, of in facts.items() if name.startswith(kind)]
        assert first == pytest.approx([loss] * 3, rel=1e-5)


@pytest.mark.parametrize("case", CROSSED)
def test_a_strategy_goes_on_from_what_another_saved(case: str, facts: Facts) -> None:
    assert facts[case]["crossed"] < 1e-6, "in any weight, after two more steps"


@pytest.mark.parametrize("case", CASES)
def test_the_probe_of_a_strategy_leaves_no_trace(case: str, facts: Facts) -> None:
    """The losses above are those of steps after it; what fits is left as it was planned."""
    assert facts[case]["probed"] == ""


@pytest.mark.parametrize("case", CASES)
def test_a_sharded_adapter_is_gathered_whole(case: str, facts: Facts) -> None:
    kind = case.split()[0]
    assert facts[case]["shapes"] == facts["dora single" if kind == "dora" else "single"]["shapes"]
    assert facts[case]["smallest_lora_B"] > 0
    assert facts[case]["dtypes"] == ["torch.float32"]


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_strategy_goes_on_to_the_bit(case: str, facts: Facts) -> None:
    assert facts[case]["resumed_bitwise"]
    assert facts[case]["restored_bitwise"]


@pytest.mark.parametrize(
    ("sharded", "whole", "precision", "refused"),
    [
        (5.0, 5.0004, "fp32", False),
        (5.0, 5.001, "fp32", True),
        (5.0, 5.09, "bf16", False),
        (5.0, 5.2, "bf16", True),
        (float("nan"), 5.0, "bf16", True),
    ],
)
def test_a_wrong_forward_pass_of_shards_stops_the_run(
    sharded: float, whole: float, precision: str, refused: bool
) -> None:
    said = refusal(lambda: require_equal(sharded, whole, precision, "fsdp"))
    assert ("something else when sharded" in said) == refused
    for loss in (sharded, whole):
        assert (f"{loss:.6g}" in said) == refused


@pytest.mark.parametrize(
    ("stage", "offload", "sections"),
    [
        (2, "none", set()),
        (2, "optimizer", {"offload_optimizer"}),
        (3, "parameters", {"offload_optimizer", "offload_param"}),
    ],
)
def test_what_deepspeed_keeps_in_host_memory(stage: int, offload: str, sections: set[str]) -> None:
    plan = TrainPlan.model_validate(
        {
            "method": "lora",
            "strategy": "deepspeed",
            "nodes": 1,
            "gpusPerNode": 2,
            "totalSteps": 1,
            "microBatchSize": 1,
            "gradientAccumulation": 1,
            "evalSteps": 1,
            "zeroStage": stage,
            "offload": offload,
        }
    )
    zero = deepspeed_config(plan, 1.0)["zero_optimization"]
    assert zero["stage"] == stage
    assert {name for name in zero if name.startswith("offload")} == sections


@pytest.mark.parametrize(
    ("changes", "dora", "device", "refused"),
    [
        ({"zero_stage": 3, "method": "qlora"}, True, "cpu", True),
        ({"zero_stage": 3, "method": "qlora"}, True, "meta", False),  # any other device
        ({"zero_stage": 3, "method": "qlora"}, False, "cpu", False),
        ({"zero_stage": 2, "method": "qlora"}, True, "cpu", False),
        ({"zero_stage": 3, "method": "lora"}, True, "cpu", False),
    ],
)
def test_dora_on_a_cut_4_bit_base_is_refused_on_the_cpu(
    changes: dict[str, Any], dora: bool, device: str, refused: bool
) -> None:
    """PEFT puts another parameter in the place of a 4-bit weight there, which ZeRO-3 does not know."""
    wire: dict[str, Any] = {"strategy": "deepspeed", "nodes": 1, "gpus_per_node": 0, "total_steps": 1, "eval_steps": 1}
    plan = TrainPlan(**{**wire, "micro_batch_size": 1, "gradient_accumulation": 1, **changes})
    said = refusal(lambda: refuse_replaced_weights(plan, torch.device(device), dora=dora))
    assert said.startswith("method.useDora") == refused
