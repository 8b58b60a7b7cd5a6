"""The command line in the hands of people: processes, their kubeconfigs and their rights, what they print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.operator_process import OperatorProcess
from tests.cluster.harness.waiting import wait_for
from tests.cluster.scenarios.story import GROUP, VERSION, Scene, Story

PROGRAM = Path(sys.executable).with_name("kubectl-finetune")
PEOPLE = ("system:authenticated",)
ROLES = {"ada": "edit", "vera": "view", "abe": "finetune-approver", "amy": "finetune-approver"}
"""Who the tests are: an author, a viewer, two approvers. Nobody has a right in another namespace."""
DEADLINE_S = 90
Result = subprocess.CompletedProcess[str]


class People:
    """Runs the command line as one person or another."""

    def __init__(self, scene: Scene, folder: Path) -> None:
        self.scene = scene
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def start(self, user: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        kubeconfig = self.scene.cluster.kubeconfig(user, PEOPLE)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("FINETUNE_", "KUBE"))}
        process = subprocess.Popen(
            [str(PROGRAM), *arguments],
            cwd=self.folder,
            env=inherited | {"KUBECONFIG": str(kubeconfig), "PYTHONUNBUFFERED": "1"} | environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.started.append(process)
        return process

    def run(self, user: str, *arguments: str, **environment: str) -> Result:
        """In the scene's namespace."""
        return self.end(self.start(user, *arguments, "-n", self.scene.namespace, **environment))

    def end(self, process: subprocess.Popen[str]) -> Result:
        out, err = process.communicate(timeout=DEADLINE_S)
        for text in (out, err):
            assert "Traceback" not in text
            assert "internal error" not in text
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def ok(self, user: str, *arguments: str) -> str:
        result = self.run(user, *arguments)
        assert result.returncode == 0, result.stderr or result.stdout
        return result.stdout

    def refused(self, user: str, *arguments: str, code: int = 2) -> str:
        result = self.run(user, *arguments)
        assert result.returncode == code, result.stdout + result.stderr
        return result.stderr


@pytest.fixture(scope="module")
def operator(installed: Cluster) -> Iterator[OperatorProcess]:
    """Keeps leading while the API server is restarted."""
    process = OperatorProcess(installed, name="operator-cli", extra=("--lease-seconds", "60"))
    yield process.started().leading()
    process.stop()


def job_yaml(scene: Scene, name: str = "support", **spec: Any) -> str:
    """A small job as its author writes it."""
    manifest = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "model": {"source": "s3://models/llama"},
            "data": {"train": [{"source": "s3://team-a/train.jsonl"}]},
            "compute": {"pool": scene.pool},
            "evaluation": {
                "task": {"type": "classification"},
                "metrics": [{"name": "f1"}],
                "gates": [{"metric": "f1", "over": "baseline", "minimumGain": 0.05}],
            },
            "output": {"adapterRef": {"name": "triage"}},
            **spec,
        },
    }
    return yaml.safe_dump(manifest, sort_keys=False)


def write(people: People, text: str) -> str:
    (people.folder / "job.yaml").write_text(text)
    return "job.yaml"


def story_of(scene: Scene, name: str = "support") -> Story:
    """The story of a job that somebody submitted."""
    return Story(scene, name, scene.objects("finetunejobs")[name]["metadata"]["uid"], "triage", "")


class Lines:
    """Waits for a line that matches; reads in a thread, so that a silent process cannot hold the test."""

    def __init__(self, process: subprocess.Popen[str], stream: str) -> None:
        self._process = process
        self._seen: list[str] = []
        pipe = getattr(process, stream)
        threading.Thread(target=lambda: self._seen.extend(iter(pipe.readline, "")), daemon=True).start()

    def __call__(self, pattern: str) -> str:
        def found() -> str:
            return next((line for line in self._seen if re.search(pattern, line)), "")

        def context() -> str:
            return f"exit code {self._process.poll()}: {''.join(self._seen)}"

        return wait_for(found, DEADLINE_S, f"a line {pattern!r}", context=context)

    def count(self, text: str) -> int:
        return sum(text in line for line in self._seen)


def lines_of(process: subprocess.Popen[str], stream: str = "stdout") -> Lines:
    """What a process writes from now on."""
    return Lines(process, stream)
