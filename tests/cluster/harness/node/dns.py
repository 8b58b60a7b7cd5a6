"""The cluster's names: CoreDNS beside the control plane, behind the usual Service `kube-dns`."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from tests.cluster.harness.binaries import binary
from tests.cluster.harness.process import Process, free_ports
from tests.cluster.harness.waiting import wait_for

from . import config

if TYPE_CHECKING:
    from .cluster import NodeCluster

_DEADLINE_S = 60
# A query for the A records of kubernetes.default.svc.cluster.local (RFC 1035, 4.1).
_NAME = b"".join(
    bytes([len(part)]) + part.encode() for part in f"kubernetes.default.svc.{config.CLUSTER_DOMAIN}".split(".")
)
_QUERY = b"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + _NAME + b"\x00\x00\x01\x00\x01"


class ClusterDNS:
    """CoreDNS on the machine's address; it outlives every node."""

    def __init__(self, cluster: NodeCluster) -> None:
        """Describe it; ``start`` runs it."""
        self._cluster = cluster
        [self._port] = free_ports(1, cluster.host_address)
        corefile = cluster.work_dir / "Corefile"
        kubeconfig = cluster.kubeconfig("system:coredns", ("system:masters",))
        corefile.write_text(config.corefile(cluster.host_address, self._port, kubeconfig))
        self._process = Process("coredns", [binary("coredns"), "-conf", corefile], cluster.logs_dir / "coredns.log")

    def start(self) -> None:
        """Start it, make the Service, and wait until a name of the cluster resolves."""
        self._process.start()
        self._cluster.apply(self._manifests())
        wait_for(
            lambda: self._process.check() and self._resolves(),
            _DEADLINE_S,
            "CoreDNS to answer",
            poll_s=0.05,
            ignore=(OSError,),
            context=self._process.log_tail,
        )

    def kill(self) -> None:
        """End it; harmless where it does not run."""
        self._process.kill()

    def _resolves(self) -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(1)
            asking.connect((self._cluster.host_address, self._port))
            asking.send(_QUERY)
            answer = asking.recv(512)
        return answer[3] & 0x0F == 0 and int.from_bytes(answer[6:8]) == 1  # no error, one record

    def _manifests(self) -> list[dict[str, object]]:
        where = {"namespace": "kube-system", "name": "kube-dns"}
        ports = [{"name": protocol.lower(), "protocol": protocol} for protocol in ("UDP", "TCP")]
        return [
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": where,
                "spec": {"clusterIP": config.DNS_ADDRESS, "ports": [{**port, "port": 53} for port in ports]},
            },
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {**where, "labels": {"kubernetes.io/service-name": "kube-dns"}},
                "addressType": "IPv4",
                "endpoints": [{"addresses": [self._cluster.host_address], "conditions": {"ready": True}}],
                "ports": [{**port, "port": self._port} for port in ports],
            },
        ]
