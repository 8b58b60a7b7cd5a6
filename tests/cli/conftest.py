"""A folder with a job, a stand-in for the runner, and the command line as people start it: a process."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_cli.local.supervisor import process_identity

FAKE_RUNNER = Path(__file__).parent / "fake_runner.py"
DEADLINE_S = 90
JOB = """
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: support-triage}
spec:
  model: {source: file://base}
  data:
    train: [{source: file://tickets.jsonl}]
  training: {learningRate: 2e-4}
  evaluation:
    task: {type: classification}
    metrics: [{name: f1}]
  output: {adapterRef: {name: support-triage}}
"""


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (result := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)
    return result


class Workspace:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / ".finetune"
        self.hold = folder / "hold"
        self.started: list[subprocess.Popen[str]] = []
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("FINETUNE_")} | {
            "FINETUNE_RUNNER_COMMAND": shlex.join([sys.executable, str(FAKE_RUNNER)]),
            "FAKE_RUNNER_PLAN": str(folder / "plan.json"),
            "USER": "ada",
            "LOGNAME": "ada",
        }
        (folder / "base").mkdir()
        rows = [{"prompt": f"ticket {number}", "completion": "billing"} for number in range(60)]
        (folder / "tickets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.write(JOB)
        self.plan()

    def write(self, text: str, name: str = "job.yaml") -> Path:
        (self.folder / name).write_text(text)
        return self.folder / name

    def plan(self, **stages: dict[str, Any]) -> None:
        (self.folder / "plan.json").write_text(json.dumps(stages))

    def hold_stage(self, stage: str, **more: Any) -> None:
        self.plan(**{stage: {"hold": str(self.hold), **more}})

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "finetune_cli", *arguments],
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.started.append(process)
        return process

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=DEADLINE_S)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def job(self, name: str = "support-triage") -> dict[str, Any]:
        file = self.state / "objects" / "finetunejob" / "default" / f"{name}.json"
        value: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        return value

    def attempts(self, stage: str) -> list[Path]:
        return sorted((self.state / "runs" / "default").glob(f"*-{stage}-*"))

    def runner_pid(self, stage: str) -> int | None:
        for attempt in self.attempts(stage):
            file = attempt / "runner.json"
            if file.exists() and (attempt / "progress.json").exists() and not (attempt / "exit.json").exists():
                return int(json.loads(file.read_text())["pid"])
        return None

    def wait_until_held(self, stage: str) -> int:
        """The stage works, has shown progress, and the job's status says so."""
        pid = wait_for(lambda: self.runner_pid(stage), f"{stage} to run")

        def told() -> bool:
            stages = self.job().get("status", {}).get("stages", [])
            return any(item["name"] == stage and item["state"] == "Running" for item in stages)

        wait_for(told, f"the status to say that {stage} runs")
        return int(pid)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    space = Workspace(tmp_path)
    yield space
    space.hold.touch()
    for process in space.started:
        if process.poll() is None:
            process.kill()
            process.communicate()
    for file in tmp_path.glob(".finetune/runs/*/*/*.json"):
        if file.name in ("runner.json", "supervisor.json"):
            facts = json.loads(file.read_text())
            if process_identity(facts["pid"]) == facts["identity"]:
                os.kill(facts["pid"], 9)
