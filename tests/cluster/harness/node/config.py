"""The configuration files of a node's programs, as values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

SERVICES_RANGE = "10.96.0.0/16"
DNS_ADDRESS = "10.96.0.10"
CLUSTER_DOMAIN = "cluster.local"
PAUSE_IMAGE = "localhost/pause:1"


def containerd(work: Path) -> str:
    """containerd's, version 2 of the format: everything below ``work``, no registry, cgroups by path."""
    return f"""\
version = 2
root = "{work}/containerd"
state = "/run/containerd"
oom_score = 0
disabled_plugins = [
  "io.containerd.internal.v1.tracing",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
  address = "{work}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{work}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  restrict_oom_score_adj = true # an instance in a container may not lower it
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{work}/cni"
"""


def cni(pods: str) -> str:
    """The pod network: a bridge per node, addresses handed out by the node, no translation."""
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": "/run/cni-ipam",
            "ranges": [[{"subnet": pods}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
    return json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, portmap]})


def kubelet(work: Path, authority: Path) -> str:
    """The kubelet's."""
    return _yaml(
        "kubelet.config.k8s.io/v1beta1",
        "KubeletConfiguration",
        containerRuntimeEndpoint=f"unix://{work}/containerd.sock",
        podLogsDir=str(work / "pod-logs"),
        authentication={
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(authority)},
        },
        authorization={"mode": "Webhook"},
        tlsCertFile=str(work / "kubelet.crt"),
        tlsPrivateKeyFile=str(work / "kubelet.key"),
        clusterDNS=[DNS_ADDRESS],
        clusterDomain=CLUSTER_DOMAIN,
        resolvConf="",
        cgroupDriver="cgroupfs",
        failCgroupV1=False,
        failSwapOn=False,
        makeIPTablesUtilChains=False,
        oomScoreAdj=0,
        evictionHard={"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        imageGCHighThresholdPercent=100,  # there is no registry to fetch a collected image from
        imageGCLowThresholdPercent=99,
    )


def kube_proxy(kubeconfig: Path, pods: str) -> str:
    """kube-proxy's."""
    return _yaml(
        "kubeproxy.config.k8s.io/v1alpha1",
        "KubeProxyConfiguration",
        clientConnection={"kubeconfig": str(kubeconfig)},
        mode="iptables",
        clusterCIDR=pods,
        oomScoreAdj=0,
        conntrack={"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    )


def corefile(address: str, port: int, kubeconfig: Path) -> str:
    """CoreDNS': the cluster's names and no others."""
    return f"""\
.:{port} {{
  bind {address}
  errors
  kubernetes {CLUSTER_DOMAIN} in-addr.arpa {{
    kubeconfig {kubeconfig}
    ttl 1
  }}
}}
"""


def _yaml(api_version: str, kind: str, **fields: Any) -> str:
    return yaml.safe_dump({"apiVersion": api_version, "kind": kind, **fields})
