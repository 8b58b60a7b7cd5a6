"""MLflow by its REST API (2.0): a client of a few requests instead of a package of 25 others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import httpx2

from finetune_api.job.tracking import Mlflow
from finetune_runner.context import StageContext
from finetune_runner.tracking.base import End, Entry, RunFacts

TIMEOUT_S = 10.0
MOST_METRICS = 1000
"""Of one request (MLflow's limit)."""
RUN_TAG = "finetune.dev/run"
_STATUS: dict[End, str] = {"Finished": "FINISHED", "Continues": "RUNNING", "Failed": "FAILED"}


class MlflowError(Exception):
    """The server refused a request."""


def open_tracker(settings: Mlflow, facts: RunFacts, _context: StageContext, secret: Mapping[str, str]) -> MlflowTracker:
    """Find or make experiment and run. Raises when the server cannot be reached or refuses."""
    return MlflowTracker(settings, facts, secret)


def _client(settings: Mlflow, secret: Mapping[str, str]) -> httpx2.Client:
    token = secret.get("MLFLOW_TRACKING_TOKEN")
    user, password = secret.get("MLFLOW_TRACKING_USERNAME"), secret.get("MLFLOW_TRACKING_PASSWORD")
    return httpx2.Client(
        base_url=settings.tracking_uri.rstrip("/") + "/api/2.0/mlflow/",
        timeout=TIMEOUT_S,
        headers={"Authorization": f"Bearer {token}"} if token else {},
        auth=(user, password or "") if user and not token else None,
        trust_env=True,
    )


class MlflowTracker:
    """One run of an MLflow server, the same for all attempts and stages of a run of the job."""

    def __init__(self, settings: Mlflow, facts: RunFacts, secret: Mapping[str, str]) -> None:
        self._client = _client(settings, secret)
        try:
            self._run_id = self._find_or_make(settings.experiment or facts.experiment, facts)
        except BaseException:
            self._client.close()
            raise

    def _find_or_make(self, experiment: str, facts: RunFacts) -> str:
        experiment_id = self._experiment(experiment)
        query = f"tags.`{RUN_TAG}` = '{facts.key}'"
        found = self._post("runs/search", {"experiment_ids": [experiment_id], "filter": query, "max_results": 1})
        if found.get("runs"):
            run_id = str(found["runs"][0]["info"]["run_id"])
            self._post("runs/update", {"run_id": run_id, "status": "RUNNING"})
            return run_id
        tags = [{"key": name, "value": value} for name, value in facts.tags.items()]
        made = self._post("runs/create", {"experiment_id": experiment_id, "run_name": facts.name, "tags": tags})
        run_id = str(made["run"]["info"]["run_id"])
        params = [{"key": name, "value": value} for name, value in facts.params.items()]
        self._post("runs/log-batch", {"run_id": run_id, "params": params})
        return run_id

    def _experiment(self, name: str) -> str:
        for _ in range(2):
            answer = self._client.get("experiments/get-by-name", params={"experiment_name": name})
            if answer.status_code != 404:
                return str(_read(answer)["experiment"]["experiment_id"])
            made = self._client.post("experiments/create", json={"name": name})
            if made.status_code == 200:
                return str(made.json()["experiment_id"])
            if "RESOURCE_ALREADY_EXISTS" not in made.text:  # another run was faster: it is found now
                _read(made)
        raise MlflowError(f"experiment {name!r} can neither be found nor made; it may have been deleted: restore it")

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return _read(self._client.post(path, json=body))

    def log(self, entries: Sequence[Entry]) -> None:
        """Metrics with step and time; a point sent twice is the same point."""
        points = [
            {"key": name, "value": value, "timestamp": round(entry.at_s * 1000), "step": entry.step}
            for entry in entries
            for name, value in entry.values.items()
        ]
        for start in range(0, len(points), MOST_METRICS):
            self._post("runs/log-batch", {"run_id": self._run_id, "metrics": points[start : start + MOST_METRICS]})

    def tag(self, tags: Mapping[str, str]) -> None:
        """Tags of the run."""
        items = [{"key": name, "value": value} for name, value in tags.items()]
        self._post("runs/log-batch", {"run_id": self._run_id, "tags": items})

    def close(self, end: End) -> None:
        """The run's status; a stage that another one follows leaves it running."""
        self._post("runs/update", {"run_id": self._run_id, "status": _STATUS[end]})
        self._client.close()


def _read(answer: httpx2.Response) -> dict[str, Any]:
    if answer.status_code != 200:
        raise MlflowError(f"{answer.request.url.path}: {answer.status_code} {answer.text[:200]}")
    value: dict[str, Any] = answer.json()
    return value
