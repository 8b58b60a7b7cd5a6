"""What a pod needs to push its progress: the URL, a token that is good for nothing else, and whom to trust. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune_api.stages import StageTask

PROGRESS_PATH = "/etc/finetune/progress"
TOKEN_FILE = "token"  # noqa: S105 - a file name
CA_FILE = "ca.crt"
CA_ANNOTATION = "finetune.dev/progress-ca"
TOKEN_LIFETIME_S = 3600
"""The kubelet rotates the token long before; the runner reads the file anew for every push."""


@dataclass(frozen=True)
class ProgressEndpoint:
    """Where pods push to. `ca` is PEM."""

    url: str
    ca: str


def audience(uid: str) -> str:
    """Whom a progress token is for: one FineTuneJob, and neither the API server nor another job."""
    return f"finetune.dev/job/{uid}"


def push_path(namespace: str, job: str) -> str:
    """Path of a job's progress at the endpoint."""
    return f"/v1/progress/{namespace}/{job}"


def ca_annotation(endpoint: ProgressEndpoint | None) -> dict[str, str]:
    """The certificate authority travels with the pod: the tenant's namespace needs no object of ours."""
    return {} if endpoint is None else {CA_ANNOTATION: endpoint.ca}


def push_environment(task: StageTask, endpoint: ProgressEndpoint | None) -> list[dict[str, Any]]:
    """Variables of the stage's container."""
    if endpoint is None:
        return []
    url = endpoint.url.rstrip("/") + push_path(task.job.namespace, task.job.name)
    return [
        {"name": "FINETUNE_PROGRESS_URL", "value": url},
        {"name": "FINETUNE_PROGRESS_CREDENTIALS", "value": PROGRESS_PATH},
    ]


def credentials_volume(task: StageTask) -> dict[str, Any]:
    """The token, bound to the pod by the kubelet, beside the certificate authority."""
    annotation = {"fieldPath": f"metadata.annotations['{CA_ANNOTATION}']"}
    token = {"audience": audience(task.job.uid), "expirationSeconds": TOKEN_LIFETIME_S, "path": TOKEN_FILE}
    return {
        "projected": {
            "sources": [
                {"serviceAccountToken": token},
                {"downwardAPI": {"items": [{"path": CA_FILE, "fieldRef": annotation}]}},
            ]
        }
    }
