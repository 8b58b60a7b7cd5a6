"""Stands in for the runner: `fake_runner.py STAGE --task FILE` reports at once what a real stage would after hours.

FAKE_RUNNER_PLAN names a JSON file, by stage: `hold` (file to wait for), `fail` (fields of the report), `ignoreTerm`,
`say` (instead of a report), and under `evaluate` the `verdict` that the evidence shall lead to.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from finetune_api.stages import (
    BaselineResult,
    Comparison,
    EvaluateResult,
    Finding,
    ModelFacts,
    PrepareResult,
    Progress,
    PublishResult,
    RowCounts,
    StageReport,
    StageResults,
    StageTask,
    TokenLengths,
    TrainResult,
    encode_report,
)

HOLD_LIMIT_S = 120


def local_path(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))


def prepare(task: StageTask, plan: dict[str, Any]) -> dict[str, Any]:
    data = b"".join(local_path(dataset.source).read_bytes() for dataset in task.spec.data.train)
    digest = hashlib.sha256(data).hexdigest()
    return {
        "prepare": PrepareResult(
            revision="a" * 64,
            model_digest="a" * 64,
            model=ModelFacts(architecture="LlamaForCausalLM", parameters=540_000, hidden_size=128, layers=2),
            rows=RowCounts(train=600, validation=80, test=200, dropped=3),
            train_tokens=20_000,
            lengths=TokenLengths(p50=30, p95=60, maximum=80),
            data_digest=digest,
            test_digest=digest,
            detected_format="chat",
        )
    }


def baseline(task: StageTask, plan: dict[str, Any]) -> dict[str, Any]:
    numbers = {"f1": 0.4, "exactMatch": 0.35, "truncationRate": 0.0, "repetitionRate": 0.0, "loss": 1.2}
    return {"baseline": BaselineResult(rows=200, baselines={"prompted": numbers}, base=numbers, best="prompted")}


def train(task: StageTask, plan: dict[str, Any]) -> dict[str, Any]:
    return {
        "train": TrainResult(
            steps=100,
            total_steps=100,
            best_step=90,
            stopped_by="completed",
            train_loss=0.3,
            initial_validation_loss=1.4,
            best_validation_loss=0.5,
            checkpoint_uri=f"{task.run_uri}/train/checkpoints/step-90",
            checkpoint_digest="b" * 64,
            trainable_parameters=10_000,
            adapter_bytes=40_000,
        )
    }


def evaluate(task: StageTask, plan: dict[str, Any]) -> dict[str, Any]:
    wanted = plan.get("verdict", "Passed")
    span = {"Passed": (0.45, 0.55), "Failed": (-0.99, -0.9), "Inconclusive": (-0.5, 0.55)}[wanted]
    comparisons = []
    for gate in task.gates:
        if gate.over is None:
            low, high = {"Passed": (0.88, 0.93), "Failed": (0.1, 0.2), "Inconclusive": (0.1, 0.99)}[wanted]
            comparisons.append(Comparison(candidate=0.9, low=low, high=high, rows=200))
        elif gate.over == "incumbent" and task.incumbent is None:
            comparisons.append(Comparison(candidate=0.9, low=0.88, high=0.93, rows=200))
        elif gate.metric in ("truncationRate", "repetitionRate"):
            comparisons.append(
                Comparison(candidate=0.0, reference=0.0, reference_name="prompted", low=0.0, high=0.0, rows=200)
            )
        else:
            comparisons.append(
                Comparison(candidate=0.9, reference=0.4, reference_name="prompted", low=span[0], high=span[1], rows=200)
            )
    metrics = {"f1": 0.9, "exactMatch": 0.88, "loss": 0.5, "truncationRate": 0.0, "repetitionRate": 0.0}
    return {"evaluate": EvaluateResult(rows=200, served_as="adapter", metrics=metrics, comparisons=comparisons)}


def publish(task: StageTask, plan: dict[str, Any]) -> dict[str, Any]:
    versions = local_path(task.adapter_uri) / "versions"
    versions.mkdir(parents=True, exist_ok=True)
    number = len(list(versions.iterdir())) + 1
    folder = versions / f"v{number}"
    folder.mkdir()
    manifest = json.dumps({"version": number, "uid": task.job.uid, "run": task.job.run})
    (folder / "manifest.json").write_text(manifest)
    digest = hashlib.sha256(manifest.encode()).hexdigest()
    uri = f"{task.adapter_uri}/versions/v{number}"
    return {"publish": PublishResult(version=number, uri=uri, digest=digest, size_bytes=len(manifest))}


STAGES = {"prepare": prepare, "baseline": baseline, "train": train, "evaluate": evaluate, "publish": publish}


def finish(task: StageTask, exit_code: int, **fields: Any) -> None:
    report = StageReport(
        stage=task.stage,
        uid=task.job.uid,
        run=task.job.run,
        attempt=task.attempt,
        outcome="Succeeded" if exit_code == 0 else "Failed",
        exit_code=exit_code,
        **fields,
    )
    Path(os.environ["FINETUNE_TERMINATION_LOG"]).write_bytes(encode_report(report))
    sys.exit(exit_code)


def hold(task: StageTask, plan: dict[str, Any]) -> None:
    """Work that lasts until a file appears; saved and ended when asked to."""
    if plan.get("ignoreTerm"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(
            signal.SIGTERM,
            lambda *_: finish(task, 85, cause="Interrupted", message="stopped at step 42; a checkpoint was saved"),
        )
    progress = Progress(
        stage=task.stage, attempt=task.attempt, step=42, total_steps=100, percent=42.0, eta_seconds=30.0, loss=0.9
    )
    file = Path(os.environ["FINETUNE_PROGRESS_FILE"])
    file.with_suffix(".new").write_text(json.dumps(progress.to_wire()))
    file.with_suffix(".new").replace(file)
    deadline = time.monotonic() + HOLD_LIMIT_S
    while not Path(plan["hold"]).exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("stage")
    parser.add_argument("--task", type=Path, required=True)
    args = parser.parse_args()
    task = StageTask.from_wire(json.loads(args.task.read_text()))
    plan_file = os.environ.get("FAKE_RUNNER_PLAN")
    plan = json.loads(Path(plan_file).read_text()).get(task.stage, {}) if plan_file else {}
    print(f"{task.stage} attempt {task.attempt} started")
    if "hold" in plan:
        hold(task, plan)
    if "say" in plan and task.mode == "run":
        Path(os.environ["FINETUNE_TERMINATION_LOG"]).write_text(plan["say"])
        sys.exit(plan.get("exitCode", 1))
    if "fail" in plan:
        finish(task, **plan["fail"])
    findings = []
    if task.stage == "prepare":
        findings = [Finding(check="duplicates", severity="warning", message="rows were there twice; kept once", rows=3)]
    finish(task, 0, result=StageResults(**STAGES[task.stage](task, plan)), findings=findings)


if __name__ == "__main__":
    main()
