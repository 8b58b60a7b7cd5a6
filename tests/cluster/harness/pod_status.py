"""The status a kubelet writes: the few values the Job controller and the operator read from a pod."""

from __future__ import annotations

import datetime
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException

STRATEGIC_MERGE = "application/strategic-merge-patch+json"
MESSAGE_LIMIT_BYTES = 4096
"""A kubelet keeps this much of a container's termination message."""


def timestamp() -> str:
    """Now, as the API writes times."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def write(core: client.CoreV1Api, pod: client.V1Pod, status: dict[str, Any]) -> None:
    """Merge into a pod's status; the uid makes sure that a successor of the same name is not meant."""
    body = {"metadata": {"uid": pod.metadata.uid}, "status": status}
    core.patch_namespaced_pod_status(pod.metadata.name, pod.metadata.namespace, body, _content_type=STRATEGIC_MERGE)


def running(pod: client.V1Pod, pod_ip: str) -> dict[str, Any]:
    """All containers run and are ready."""
    containers = [
        _container(item, {"running": {"startedAt": timestamp()}}, ready=True, pod=pod) for item in pod.spec.containers
    ]
    return {
        "phase": "Running",
        "conditions": [_condition(name, "True") for name in ("Initialized", "ContainersReady", "Ready")],
        "containerStatuses": containers,
        "startTime": timestamp(),
        "podIP": pod_ip,
        "podIPs": [{"ip": pod_ip}],
    }


def terminated(pod: client.V1Pod, exit_code: int, reason: str, message: str) -> dict[str, Any]:
    """All containers ended with this exit code; the pod is Succeeded for 0 and Failed otherwise."""
    statuses = (pod.status.container_statuses if pod.status else None) or []
    running_since = next(
        (item.state.running.started_at for item in statuses if item.state and item.state.running), None
    )
    started = running_since.strftime("%Y-%m-%dT%H:%M:%SZ") if running_since else timestamp()
    state = {
        "terminated": {
            "exitCode": exit_code,
            "reason": reason,
            "message": message.encode()[:MESSAGE_LIMIT_BYTES].decode(errors="ignore"),
            "startedAt": started,
            "finishedAt": timestamp(),
            "containerID": f"test://{pod.metadata.uid}",
        }
    }
    return {
        "phase": "Succeeded" if exit_code == 0 else "Failed",
        "conditions": [
            _condition(name, "False", "PodCompleted" if exit_code == 0 else "PodFailed")
            for name in ("ContainersReady", "Ready")
        ],
        "containerStatuses": [_container(item, state, ready=False, pod=pod) for item in pod.spec.containers],
    }


def waiting(pod: client.V1Pod, reason: str, message: str) -> dict[str, Any]:
    """The containers wait, for an image for example."""
    state = {"waiting": {"reason": reason, "message": message}}
    return {
        "phase": "Pending",
        "conditions": [_condition(name, "False", "ContainersNotReady") for name in ("ContainersReady", "Ready")],
        "containerStatuses": [_container(item, state, ready=False, pod=pod) for item in pod.spec.containers],
    }


def disrupted(reason: str, message: str) -> dict[str, Any]:
    """The condition that names a disruption as the reason of a pod's end."""
    return {"conditions": [{**_condition("DisruptionTarget", "True", reason), "message": message}]}


def evicted(pod: client.V1Pod, exit_code: int, report: str, message: str) -> dict[str, Any]:
    """What the kubelet writes when it evicts a pod: only the pod says so, the container says that it was killed."""
    return {**terminated(pod, exit_code, "Error", report), "reason": "Evicted", "message": message}


def remove(core: client.CoreV1Api, pod: client.V1Pod) -> None:
    """Take a pod out of the API as a kubelet does at the end of its deletion: no grace, this very pod, gone is fine."""
    options = client.V1DeleteOptions(grace_period_seconds=0, preconditions=client.V1Preconditions(uid=pod.metadata.uid))
    try:
        core.delete_namespaced_pod(pod.metadata.name, pod.metadata.namespace, body=options)
    except ApiException as error:
        if error.status not in {404, 409}:  # 409: the uid is another's, ours is gone
            raise


def _condition(kind: str, status: str, reason: str | None = None) -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "lastTransitionTime": timestamp(), "lastProbeTime": None}


def _container(item: client.V1Container, state: dict[str, Any], *, ready: bool, pod: client.V1Pod) -> dict[str, Any]:
    return {
        "name": item.name,
        "image": item.image,
        "imageID": "",
        "containerID": f"test://{pod.metadata.uid}" if "waiting" not in state else "",
        "ready": ready,
        "started": ready,
        "restartCount": 0,
        "state": state,
    }
