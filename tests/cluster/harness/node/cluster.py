"""A whole cluster on a plain machine: the control plane, the cluster's names, and nodes that run containers."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kubernetes import client

from tests.cluster.harness.controlplane import ControlPlane

from .dns import ClusterDNS
from .node import Node
from .slots import Claim, Slot


class NodeCluster(ControlPlane):
    """A control plane with nodes, as a context manager; several may run on one machine at once.

    Pods reach servers of the test at ``host_address`` and the API server through its Service; the test reaches pods and
    nodes at their own addresses. There is no way from a pod to any other network.

    Args:
        audit: as for ``ControlPlane``.
        node_grace_s: seconds without a sign of life after which a node counts as lost.
        apiserver_args, controller_args: further flags.
        keep: leave the folder with the logs behind.

    Raises:
        NoSlot: too many clusters run, or their addresses are taken.
    """

    def __init__(
        self,
        *,
        audit: bool = False,
        node_grace_s: int = 50,
        apiserver_args: Sequence[str] = (),
        controller_args: Sequence[str] = (),
        keep: bool = False,
    ) -> None:
        self._claim = Claim.take()
        self.nodes: dict[str, Node] = {}
        self._added = 0
        try:
            super().__init__(
                audit=audit,
                host="0.0.0.0",
                names=[self.slot.host_address],
                node_lifecycle=True,
                # What pods find behind the Service `kubernetes`.
                apiserver_args=[
                    f"--advertise-address={self.slot.host_address}",
                    "--endpoint-reconciler-type=lease",
                    *apiserver_args,
                ],
                controller_args=[f"--node-monitor-grace-period={node_grace_s}s", *controller_args],
                keep=keep,
            )
            self._claim.record(None if keep else self.work_dir)
            self.dns = ClusterDNS(self)
        except BaseException:
            self._claim.release()
            raise

    @property
    def slot(self) -> Slot:
        """The names and addresses of this cluster on the machine."""
        return self._claim.slot

    @property
    def host_address(self) -> str:
        """Where pods reach servers of the test: give it to them as the address to bind."""
        return self.slot.host_address

    def __enter__(self) -> Self:
        """Start the control plane and the cluster's names; nodes come by ``add_node``."""
        super().__enter__()
        try:
            self.dns.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill everything and leave nothing on the machine."""
        self.close()

    def close(self) -> None:
        """Stop the nodes and the control plane, and give back names and addresses."""
        for node in self.nodes.values():
            node.stop()
        self.dns.kill()
        super().close()
        self._claim.release()

    def add_node(
        self,
        name: str | None = None,
        *,
        gpus: int = 8,
        labels: dict[str, str] | None = None,
        image_targets: Sequence[str] = (),
        runtime: Path | None = None,
    ) -> Node:
        """Start a node and wait until it is Ready; its name is `node-<number>` unless given.

        With ``image_targets`` ("operator", "runner") its pods find the project's images, `images.OPERATOR` and
        `images.RUNNER`, with ``imagePullPolicy: Never``. ``runtime``: see `Node`.
        """
        index = self._added
        self._added += 1
        node = Node(self, index, name or f"node-{index}", gpus, labels or {}, image_targets, runtime)
        self.nodes[node.name] = node
        node.start()
        return node

    def remove_node(self, node: Node) -> None:
        """Stop a node and delete its object."""
        node.stop()
        client.CoreV1Api(self.api()).delete_node(node.name)
        del self.nodes[node.name]

    def entry_for_nodes(self) -> dict[str, Any]:
        """The cluster's entry of a kubeconfig that is used on a node or in a pod."""
        authority = base64.b64encode(self.authority.pair.certificate).decode()
        return {"server": f"https://{self.host_address}:{self.port}", "certificate-authority-data": authority}
