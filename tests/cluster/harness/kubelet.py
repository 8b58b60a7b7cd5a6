"""Stand-ins for the kubelet: ``PodPlayer`` writes what a test says, ``ProcessKubelet`` runs pods as processes."""

from __future__ import annotations

from collections.abc import Sequence

from kubernetes import client
from kubernetes.client.exceptions import ApiException

from . import pod_status
from .cluster import Cluster
from .leases import Leases
from .process_kubelet import ProcessKubelet
from .waiting import wait_for

__all__ = ["PodPlayer", "ProcessKubelet"]

_EXIT_CODE_SIGTERM = 143
_JOB_NAME_LABEL = "batch.kubernetes.io/job-name"
_NOT_READY_TAINT = "node.kubernetes.io/not-ready"


class PodPlayer:
    """Makes nodes and moves pods through their life by writing their status, as the administrator.

    Pods are passed as read; every method reads what it needs from them and returns nothing unless said.
    """

    def __init__(self, cluster: Cluster) -> None:
        """Play the kubelets of a cluster whose nodes are made by ``add_node``."""
        self._core = client.CoreV1Api(cluster.api())
        self._leases = Leases(cluster.api()) if cluster.watches_nodes else None
        self._addresses = 0
        self._abandoned: set[str] = set()

    def add_node(
        self,
        name: str,
        gpus: int = 8,
        cpu: str = "64",
        memory: str = "512Gi",
        *,
        gpu_resource: str = "nvidia.com/gpu",
        labels: dict[str, str] | None = None,
        taints: Sequence[client.V1Taint] = (),
    ) -> None:
        """Create a Ready node the scheduler can use at once."""
        node = client.V1Node(
            metadata=client.V1ObjectMeta(name=name, labels={"kubernetes.io/hostname": name, **(labels or {})}),
            spec=client.V1NodeSpec(taints=list(taints) or None),
        )
        self._core.create_node(node)
        resources = {"cpu": cpu, "memory": memory, "pods": "500", "ephemeral-storage": "1Ti"}
        if gpus:
            resources[gpu_resource] = str(gpus)
        status = {
            "capacity": resources,
            "allocatable": resources,
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        }
        self._core.patch_node_status(name, {"status": status}, _content_type=pod_status.STRATEGIC_MERGE)
        self.set_node_ready(name, ready=True)
        if self._leases is not None:
            self._leases.add(name)

    def set_node_ready(self, name: str, *, ready: bool) -> None:
        """Say whether the node is heard of, with the taint that goes with it.

        Admission taints every new node as not ready; the controller that would remove the taint does not run here.
        """
        condition = {
            "type": "Ready",
            "status": "True" if ready else "Unknown",
            "reason": "KubeletReady" if ready else "NodeStatusUnknown",
            "lastHeartbeatTime": pod_status.timestamp(),
            "lastTransitionTime": pod_status.timestamp(),
        }
        self._core.patch_node_status(
            name, {"status": {"conditions": [condition]}}, _content_type=pod_status.STRATEGIC_MERGE
        )
        node = self._core.read_node(name)
        taints = [{"key": item.key, "value": item.value, "effect": item.effect} for item in node.spec.taints or []]
        wanted = [item for item in taints if item["key"] != _NOT_READY_TAINT]
        if not ready:
            wanted.append({"key": _NOT_READY_TAINT, "value": None, "effect": "NoSchedule"})
        self._core.patch_node(name, {"spec": {"taints": wanted or None}}, _content_type="application/merge-patch+json")

    def remove_node(self, name: str) -> None:
        """Delete a node; the pod garbage collector deletes its pods after a while, as for a lost machine."""
        if self._leases is not None:
            self._leases.remove(name)
        try:
            self._core.delete_node(name)
        except ApiException as error:
            if error.status != 404:
                raise

    def pods(self, namespace: str, job: str | None = None) -> list[client.V1Pod]:
        """The pods of a namespace, or of one Job in the order of their completion index."""
        selector = f"{_JOB_NAME_LABEL}={job}" if job else None
        found: list[client.V1Pod] = self._core.list_namespaced_pod(namespace, label_selector=selector).items
        index = "batch.kubernetes.io/job-completion-index"
        return sorted(found, key=lambda pod: (int((pod.metadata.annotations or {}).get(index, 0)), pod.metadata.name))

    def bound_pods(self, namespace: str, job: str, count: int = 1, deadline_s: float = 60) -> list[client.V1Pod]:
        """Wait until the scheduler has given ``count`` living pods of a Job a node, and return them."""

        def bound() -> list[client.V1Pod]:
            pods = [
                pod for pod in self.pods(namespace, job) if pod.spec.node_name and not pod.metadata.deletion_timestamp
            ]
            return pods if len(pods) >= count else []

        return wait_for(
            bound,
            deadline_s,
            f"{count} scheduled pods of Job {namespace}/{job}",
            context=lambda: self._events(namespace),
        )

    def running(self, pod: client.V1Pod) -> None:
        """The pod's containers run."""
        self._addresses += 1
        address = f"10.244.{self._addresses // 250 % 250}.{self._addresses % 250 + 1}"
        pod_status.write(self._core, pod, pod_status.running(pod, address))

    def succeed(self, pod: client.V1Pod, message: str = "") -> None:
        """The pod ends with 0 and leaves a termination message."""
        self._end(pod, 0, "Completed", message)

    def fail(self, pod: client.V1Pod, exit_code: int, reason: str | None = None, message: str = "") -> None:
        """The pod ends with an exit code; the reason is ``Error`` unless given (``OOMKilled`` goes with 137)."""
        self._end(pod, exit_code, reason or "Error", message)

    def waiting(self, pod: client.V1Pod, reason: str = "ImagePullBackOff", message: str = "") -> None:
        """The pod's containers cannot start."""
        pod_status.write(self._core, pod, pod_status.waiting(pod, reason, message))

    def disruption(self, pod: client.V1Pod, reason: str = "PreemptionByScheduler", message: str = "") -> None:
        """Mark the pod as disrupted; what ends it (``fail``, a deletion) is the test's next step."""
        pod_status.write(self._core, pod, pod_status.disrupted(reason, message))

    def evict(self, pod: client.V1Pod, message: str, exit_code: int = 137, report: str = "") -> None:
        """The kubelet evicts the pod in its own words; the container may still have left a report."""
        pod_status.write(self._core, pod, pod_status.evicted(pod, exit_code, report, message))

    def finish_deletion(self, pod: client.V1Pod, exit_code: int = _EXIT_CODE_SIGTERM, message: str = "") -> None:
        """End a terminating pod with an exit code and take it out of the API, as after its grace period."""
        if not pod.metadata.deletion_timestamp:
            raise ValueError(f"pod {pod.metadata.namespace}/{pod.metadata.name} is not being deleted")
        if pod.status.phase not in {"Succeeded", "Failed"}:
            self._end(pod, exit_code, "Completed" if exit_code == 0 else "Error", message)
        pod_status.remove(self._core, pod)

    def finish_deletions(self, namespace: str, exit_code: int = _EXIT_CODE_SIGTERM) -> int:
        """Finish the deletion of every terminating pod of a namespace that is not abandoned; returns their number."""
        terminating = [
            pod
            for pod in self.pods(namespace)
            if pod.metadata.deletion_timestamp and pod.metadata.uid not in self._abandoned
        ]
        for pod in terminating:
            try:
                self.finish_deletion(pod, exit_code)
            except ApiException as error:
                if error.status != 404:
                    raise
        return len(terminating)

    def abandon(self, pod: client.V1Pod) -> None:
        """From now on the node of this pod does not answer: its deletion is never finished here."""
        self._abandoned.add(pod.metadata.uid)

    def lose(self, pod: client.V1Pod) -> None:
        """Force-delete a pod without an end of its containers: what a vanished machine leaves."""
        pod_status.remove(self._core, pod)

    def _end(self, pod: client.V1Pod, exit_code: int, reason: str, message: str) -> None:
        current = self._core.read_namespaced_pod(pod.metadata.name, pod.metadata.namespace)
        if current.metadata.uid != pod.metadata.uid:
            raise ValueError(f"pod {pod.metadata.name} was replaced: {pod.metadata.uid} is now {current.metadata.uid}")
        pod_status.write(self._core, current, pod_status.terminated(current, exit_code, reason, message))

    def _events(self, namespace: str) -> str:
        events = self._core.list_namespaced_event(namespace).items
        return "\n".join(
            f"{event.involved_object.kind}/{event.involved_object.name}: {event.message}" for event in events[-20:]
        )
