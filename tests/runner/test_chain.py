"""Five stages, one process each, on a file:// store; stopped, and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import STAGES, StageReport, StageResults, TrainPlan, decode_report
from tests.cluster.harness.waiting import wait_for
from tests.runner.tiny import tickets

DEADLINE_S = 240


class Chain:
    """A run driven as an operator would: a task file and an exit code per stage."""

    def __init__(self, folder: Path, model: Path, *, method: str = "lora", form: str = "adapter", **plan: Any) -> None:
        self.folder = folder
        self.results = StageResults()
        self.method = method
        self.plan_changes = plan
        for name, count, seed in (("tickets", 300, 5), ("general", 12, 6)):
            rows = [json.dumps({"messages": list(row.messages)}) for row in tickets(count, seed)]
            (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
        self.spec = {
            "model": {"source": f"file://{model}"},
            "data": {"train": [{"source": f"file://{folder}/tickets.jsonl"}]},
            "method": {"type": method, "rank": 8},
            "training": {"learningRate": 1e-2, "globalBatchSize": 8, "maxLength": 96},
            "evaluation": {
                "task": {"type": "classification", "labelPath": "$.category"},
                "metrics": [{"name": "f1"}],
                "maxNewTokens": 16,
                "gates": [{"metric": "f1", "over": "baseline", "minimumGain": 0.0}],
            },
            "output": {"adapterRef": {"name": "triage"}, "servedAs": form},
        }

    def start(self, stage: str, attempt: int = 1) -> subprocess.Popen[bytes]:
        task: dict[str, Any] = {
            "stage": stage,
            "job": {"namespace": "team", "name": "job", "uid": "uid-1", "run": 1},
            "adapter": "triage",
            "attempt": attempt,
            "storage": {"uri": f"file://{self.folder}/store"},
            "spec": self.spec,
            "gates": self.spec["evaluation"]["gates"],  # type: ignore[index]
            "results": self.results.to_wire(),
            "createdAt": "2026-03-01T12:00:00Z",
        }
        if stage != "prepare":
            task["plan"] = self.plan().to_wire()
        path = self.folder / f"{stage}.json"
        path.write_text(json.dumps(task))
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "FINETUNE_SCRATCH": str(self.folder / "scratch"),
            "FINETUNE_SECRETS": str(self.folder / "none"),
            "FINETUNE_PROGRESS_FILE": str(self.folder / "progress.json"),
            "FINETUNE_TERMINATION_LOG": str(self.folder / f"{stage}.report"),
        }
        command = [sys.executable, "-m", "finetune_runner", stage, "--task", str(path)]
        with (self.folder / f"{stage}.log").open("ab") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def plan(self) -> TrainPlan:
        values: dict[str, Any] = {
            "method": self.method,
            "strategy": "single",
            "nodes": 1,
            "gpus_per_node": 0,
            "total_steps": 20,
            "micro_batch_size": 8,
            "gradient_accumulation": 1,
            "eval_steps": 10,
            **self.plan_changes,
        }
        return TrainPlan(**values)

    def report(self, stage: str) -> StageReport:
        return decode_report((self.folder / f"{stage}.report").read_bytes())

    def run(self, stage: str, attempt: int = 1) -> StageReport:
        code = self.start(stage, attempt).wait(timeout=DEADLINE_S)
        assert code == 0, (self.folder / f"{stage}.log").read_text()[-3000:]
        report = self.report(stage)
        self.results = self.results.model_copy(update={stage: getattr(report.result, stage)})
        return report

    def step(self) -> int:
        """The newest step in the progress file."""
        try:
            progress = json.loads((self.folder / "progress.json").read_text())
        except FileNotFoundError:
            return 0
        return int(progress.get("step", 0)) if progress["stage"] == "train" else 0


@pytest.mark.timeout(900)
def test_a_run_ends_with_a_version(tmp_path: Path, tiny_model: Path) -> None:
    """The longest way through the stages; the form `adapter` goes its own in tests/examples and the scenarios."""
    chain = Chain(tmp_path, tiny_model, method="qlora", form="merged")
    reports = [chain.run(stage) for stage in STAGES]
    assert [report.outcome for report in reports] == ["Succeeded"] * 5
    assert all(len((tmp_path / f"{stage}.report").read_bytes()) <= 4000 for stage in STAGES)
    version = chain.results.publish
    assert version is not None
    assert version.version == 1
    folder = Path(version.uri.removeprefix("file://"))
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert manifest["servedAs"] == "merged"
    assert all((folder / name).stat().st_size == facts["size"] for name, facts in manifest["files"].items())
    assert {"model.safetensors", "row-hashes.dat"} <= set(manifest["files"])


@pytest.mark.timeout(900)
def test_a_stopped_training_exits_with_85_and_goes_on_where_it_was(tmp_path: Path, tiny_model: Path) -> None:
    chain = Chain(tmp_path, tiny_model, total_steps=3000, eval_steps=3000)
    chain.run("prepare")
    process = chain.start("train")
    wait_for(lambda: chain.step() >= 1 or process.poll() is not None, DEADLINE_S, "the first step", poll_s=0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=DEADLINE_S) == ExitCode.INTERRUPTED
    report = chain.report("train")
    assert (report.outcome, report.cause) == ("Failed", "Interrupted")
    checkpoints = tmp_path / "store/team/triage/runs/uid-1/1/train/checkpoints"
    step = max(int(path.parent.name.removeprefix("step-")) for path in checkpoints.glob("*/checkpoint.json"))
    assert 1 <= step < 3000
    assert f"step {step}" in report.message
    # The rest of a long run is not worth the time: a budget that is already used up ends it at the next step.
    chain.plan_changes["time_budget_seconds"] = 1
    again = chain.run("train", attempt=2).result.train
    assert again is not None
    assert again.resumed_from_step == step
    assert again.stopped_by == "budget"
    assert again.steps > step
