"""A real MLflow tracking server on loopback, from an environment of its own: it wants another pyarrow than ours."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.cluster.harness.process import LOOPBACK, Process, free_ports
from tests.cluster.harness.waiting import wait_for
from tests.runner.locked_home import locked_home

START_DEADLINE_S = 300


class MlflowServer:
    """A tracking server as a context manager; `url` is where it answers."""

    def __init__(self, folder: Path) -> None:
        (port,) = free_ports(1)
        self.url = f"http://{LOOPBACK}:{port}"
        command: list[str | Path] = [locked_home("mlflow") / "bin/python", "-m", "mlflow", "server", "--host", LOOPBACK]
        command += ["--port", str(port), "--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
        command += ["--default-artifact-root", str(folder / "artifacts")]
        telemetry = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
        self.process = Process("mlflow", command, folder / "mlflow.log", {**os.environ, **telemetry})
        self._folder = folder

    def __enter__(self) -> Self:
        self.process.start(self._folder)
        wait_for(self._answers, START_DEADLINE_S, "the MLflow server", context=self.process.log_tail)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.process.kill()

    def _answers(self) -> bool:
        self.process.check()
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False
