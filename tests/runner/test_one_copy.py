"""A base that is cut into parts is in host memory once per node. Real processes, gloo."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune_api.job.method import Method
from finetune_api.stages import TrainPlan
from finetune_runner.training.distributed import World
from finetune_runner.training.one_copy import reads_base
from tests.runner.base_memory import CASES, make_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of tests/runner/base_memory.py, and the model's parameters."""
    model = tmp_path_factory.mktemp("model")
    parameters = make_model(model)
    done = subprocess.run(
        [sys.executable, "-m", "tests.runner.base_memory", str(model)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    shutil.rmtree(model)  # pytest would keep it
    lines = [line for line in done.stdout.splitlines() if line.startswith("FACTS ")]
    assert lines, done.stderr[-3000:]
    return {"parameters": parameters, **json.loads(lines[0].removeprefix("FACTS "))}


@pytest.mark.parametrize("case", CASES)
def test_one_process_of_a_node_holds_the_whole_base(case: str, facts: dict[str, Any]) -> None:
    """In 32 bit, or read in 16 and cut in 4: the other takes its half, a block at a time."""
    reader, other = facts[case]
    whole = facts["parameters"] * (2 if "qlora" in case else 4)
    print(f"{case:12} {reader['bytes'] / 2**20:.0f} and {other['bytes'] / 2**20:.0f} MiB of {whole / 2**20:.0f}")
    assert reader["bytes"] > whole
    assert other["bytes"] < 0.95 * whole, "half of it, and a block"
    assert other["bytes"] < reader["bytes"] - whole / 2
    assert other["loss"] == reader["loss"]


def test_each_node_has_a_reader_of_its_own(facts: dict[str, Any]) -> None:
    weights = [rank.pop("weight") for rank in facts["two nodes"]]
    assert weights == [10.0, 10.0, 12.0, 12.0]
    assert facts["two nodes"] == [{"counted": [n, n], "tied": True, "frozen": True} for n in (0, 0, 2, 2)]


@pytest.mark.parametrize(
    ("strategy", "method", "dora", "first", "second"),
    [
        ("fsdp", "lora", False, True, False),
        ("fsdp", "qlora", False, True, False),
        ("deepspeed", "lora", False, True, False),
        ("fsdp", "lora", True, True, False),
        ("fsdp", "qlora", True, True, True),  # PEFT takes norms of the weights
        ("ddp", "lora", False, True, True),
        ("single", "lora", False, True, True),
    ],
)
def test_who_reads_the_base(strategy: str, method: str, dora: bool, first: bool, second: bool) -> None:
    wire = {"nodes": 1, "gpus_per_node": 2, "total_steps": 1, "eval_steps": 1}
    wire |= {"micro_batch_size": 1, "gradient_accumulation": 1}
    plan = TrainPlan(method=method, strategy=strategy, **wire)  # type: ignore[arg-type]
    asked = [reads_base(plan, Method(use_dora=dora), World(rank, 2, rank, 2)) for rank in (0, 1)]
    assert asked == [first, second]
