"""Pods of a test on a real node: made as restricted as the operator's, and read until they end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException

from .cluster import Cluster
from .waiting import wait_for

DEADLINE_S = 120
_RESTRICTED: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


class Pods:
    """Creates pods of one image in one namespace and waits for what they say.

    Args:
        cluster: where the node is.
        namespace: where the pods go.
        image: what they run; it is on the node already.
        context: ends the message when a wait is in vain.
    """

    def __init__(self, cluster: Cluster, namespace: str, image: str, context: Callable[[], str]) -> None:
        self.namespace = namespace
        self.core = client.CoreV1Api(cluster.api())
        self._image = image
        self._context = context

    def spec(self, args: Sequence[str], limits: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
        """A pod spec that passes Pod Security `restricted`; ``more`` are further fields."""
        container = {
            "name": "main",
            "image": self._image,
            "imagePullPolicy": "Never",
            "args": list(args),
            "securityContext": _RESTRICTED,
            "resources": {"limits": limits or {}},
        }
        return {"restartPolicy": "Never", "terminationGracePeriodSeconds": 30, "containers": [container], **more}

    def run(self, name: str, *args: str, limits: dict[str, str] | None = None, **more: Any) -> None:
        """Create a pod."""
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": self.spec(args, limits, **more)}
        self.core.create_namespaced_pod(self.namespace, body)

    def read(self, name: str) -> client.V1Pod:
        """The pod as the API server has it."""
        return self.core.read_namespaced_pod(name, self.namespace)

    def running(self, name: str) -> client.V1Pod:
        """Wait until its container runs; the pod then."""
        return self._wait(name, lambda pod: _state(pod) is not None and _state(pod).running, "run")

    def ended(self, name: str) -> client.V1ContainerStateTerminated:
        """Wait until its container has ended; how."""
        pod = self._wait(name, lambda pod: _state(pod) is not None and _state(pod).terminated, "end")
        return _state(pod).terminated

    def gone(self, name: str) -> None:
        """Wait until the API server has it no more."""

        def absent() -> bool:
            try:
                self.read(name)
            except ApiException as error:
                if error.status == 404:
                    return True
                raise
            return False

        wait_for(absent, DEADLINE_S, f"pod {name} to be gone", context=self._context)

    def delete(self, name: str) -> None:
        """Ask for its end, with its grace period."""
        self.core.delete_namespaced_pod(name, self.namespace)

    def log(self, name: str) -> str:
        """What it printed."""
        return str(self.core.read_namespaced_pod_log(name, self.namespace))

    def _wait(self, name: str, condition: Callable[[client.V1Pod], Any], what: str) -> client.V1Pod:
        def reached() -> client.V1Pod | None:
            pod = self.read(name)
            return pod if condition(pod) else None

        def context() -> str:
            return f"{self.read(name).status}\n{self._context()}"

        return wait_for(reached, DEADLINE_S, f"pod {name} to {what}", context=context)


def _state(pod: client.V1Pod) -> Any:
    statuses = pod.status.container_statuses
    return statuses[0].state if statuses else None
