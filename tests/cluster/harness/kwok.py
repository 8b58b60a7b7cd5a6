"""Hundreds of nodes that are only told of: kwok answers for their kubelets, so that scale costs no machine.

Nodes are Ready and renew their leases; pods on them run at once, and those of Jobs are complete a moment later. Nothing
is executed. https://kwok.sigs.k8s.io
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from kubernetes import client

from .binaries import binary, module_source
from .cluster import Cluster
from .process import LOOPBACK, Process, free_ports
from .waiting import wait_for

GPU = "nvidia.com/gpu"
LABEL = "finetune-test/kwok"
"""Every node of kwok carries it, as `true`; a pod selects them by it."""

# kwok's own description of a kubelet in a hurry, as its releases ship it.
_STAGES = (
    "node/fast/node-initialize.yaml",
    "node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
    "pod/fast/pod-ready.yaml",
    "pod/fast/pod-delete.yaml",
)
_COMPLETION = "pod/fast/pod-complete.yaml"
_MARK = "kwok.x-k8s.io/node"
_DEADLINE_S = 120


class Kwok:
    """kwok beside a cluster, from ``with`` to its end; it needs ``ControlPlane(node_lifecycle=True)``.

    Args:
        cluster: where its nodes appear.
        completes: whether pods of Jobs are complete a moment after their start; else they run until they are deleted.
    """

    def __init__(self, cluster: Cluster, *, completes: bool = True) -> None:
        self._core = client.CoreV1Api(cluster.api())
        [port] = free_ports(1)
        stages = module_source("kwok", "sigs.k8s.io/kwok") / "kustomize" / "stage"
        self._process = Process(
            "kwok",
            [
                binary("kwok"),
                f"--kubeconfig={cluster.admin_kubeconfig}",
                "--manage-all-nodes=false",
                f"--manage-nodes-with-annotation-selector={_MARK}=fake",
                *(f"--config={stages / name}" for name in (*_STAGES, *((_COMPLETION,) if completes else ()))),
                f"--server-address={LOOPBACK}:{port}",
                "--node-lease-duration-seconds=40",
            ],
            cluster.work_dir / "kwok.log",
        )

    def __enter__(self) -> Self:
        """Start it."""
        self._process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it; its nodes stay in the API and count as lost after a while."""
        self.close()

    def close(self) -> None:
        """End it; harmless when called twice."""
        self._process.kill()

    def add_nodes(
        self,
        count: int,
        *,
        gpus: int = 8,
        prefix: str = "kwok",
        cpu: str = "64",
        memory: str = "512Gi",
        tainted: bool = False,
    ) -> list[str]:
        """Create nodes `<prefix>-0` and on, and wait until all are Ready; their names.

        ``tainted`` keeps pods away that do not tolerate ``kwok.x-k8s.io/node``: beside nodes that run something.
        """
        names = [f"{prefix}-{number}" for number in range(count)]
        resources = {"cpu": cpu, "memory": memory, "pods": "110", "ephemeral-storage": "1Ti"}
        if gpus:
            resources[GPU] = str(gpus)
        for name in names:
            labels = {"kubernetes.io/hostname": name, LABEL: "true"}
            self._core.create_node(
                {
                    "metadata": {"name": name, "annotations": {_MARK: "fake"}, "labels": labels},
                    "spec": {"taints": [{"key": _MARK, "value": "fake", "effect": "NoSchedule"}] if tainted else []},
                    "status": {"allocatable": resources, "capacity": resources},
                }
            )

        def ready() -> bool:
            self._process.check()
            nodes = self._core.list_node(label_selector=LABEL).items
            return set(names) <= {node.metadata.name for node in nodes if is_ready(node)}

        wait_for(ready, _DEADLINE_S, f"{count} nodes of kwok to be Ready", context=self._process.log_tail)
        return names


def is_ready(node: client.V1Node) -> bool:
    """Whether the scheduler may use a node: its kubelet says Ready, and no taint says otherwise."""
    conditions = {item.type: item.status for item in node.status.conditions or []}
    taints = {item.key for item in node.spec.taints or []}
    return conditions.get("Ready") == "True" and not any(key.startswith("node.kubernetes.io/") for key in taints)
