"""What the pod of a job's running stage would push, said by a test."""

from __future__ import annotations

from typing import Any

from .progress import ProgressEndpoint, Pushed, pod_token
from .runs import Runs


class Talk:
    """The pod of one attempt, with its real token."""

    def __init__(self, runs: Runs, endpoint: ProgressEndpoint, stage: str, name: str = "support") -> None:
        self.runs, self.endpoint, self.stage, self.name = runs, endpoint, stage, name
        status = runs.begin(stage, name=name)
        self.uid = runs.job(name).metadata.uid
        [self.pod] = runs.pods(status)
        self.token = pod_token(runs.cluster, self.pod, self.uid)

    def push(self, percent: float, *, token: str | None = None, body: Any = None, **changes: Any) -> Pushed:
        said = {"stage": self.stage, "attempt": 1, "percent": percent, "etaSeconds": 720.0, **changes}
        return self.endpoint.push(self.runs.namespace, self.name, token or self.token, said if body is None else body)

    def wait_told(self, text: str) -> None:
        self.runs.wait(lambda: self.runs.status(self.name).progress == text, f"the column to say {text}")
