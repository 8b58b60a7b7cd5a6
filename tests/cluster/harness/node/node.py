"""A real node: containerd, runc, CNI, kubelet and kube-proxy in a machine of their own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kubernetes import client
from kubernetes.client.exceptions import ApiException

from tests.cluster.harness import images
from tests.cluster.harness.binaries import binary
from tests.cluster.harness.cluster import write_kubeconfig
from tests.cluster.harness.oci import write_image
from tests.cluster.harness.process import Process
from tests.cluster.harness.waiting import wait_for

from . import config
from .machine import Machine

if TYPE_CHECKING:
    from .cluster import NodeCluster

GPU = "nvidia.com/gpu"
_DEADLINE_S = 120
_NAMESPACE = "k8s.io"


class Node:
    """One node of a ``NodeCluster``; made by ``NodeCluster.add_node``.

    Its GPUs are an extended resource and no more: the scheduler and the kubelet count them, and pods that get them run
    on the CPU.

    Args:
        cluster: whose API server it registers with.
        index: its number among the cluster's nodes.
        name: its name in the API.
        gpus: how many GPUs it says it has.
        labels: labels the kubelet registers it with.
        image_targets: which of the project's images its pods find: "operator", "runner".
        runtime: a folder with `containerd`, its shim for runc and `ctr`; by default the machine's own are used.
    """

    def __init__(
        self,
        cluster: NodeCluster,
        index: int,
        name: str,
        gpus: int,
        labels: dict[str, str],
        image_targets: Sequence[str] = (),
        runtime: Path | None = None,
    ) -> None:
        self.cluster = cluster
        self.name = name
        self.gpus = gpus
        self.work_dir = cluster.work_dir / name
        self.work_dir.mkdir()
        programs = binary("kubernetes", "kubelet").parent
        seen = [programs, *([runtime] if runtime else [])]
        if image_targets:
            seen.append(images.fill_containerd_root(self.work_dir / "containerd", *image_targets))
        self.machine = Machine(cluster.slot, index, name, self.work_dir, seen)
        self._core = client.CoreV1Api(cluster.api())
        self._write_files(labels)
        self._labels = labels
        self._runtime = runtime
        self.containerd: Process | None = None
        self.kubelet: Process | None = None
        self.proxy: Process | None = None

    @property
    def containerd_socket(self) -> Path:
        """Where containerd listens, on the machine and in the node."""
        return self.work_dir / "containerd.sock"

    def start(self) -> None:
        """Start everything and wait until the node is Ready and has its GPUs."""
        peers = [node.machine for node in self.cluster.nodes.values() if node is not self and node.machine.running]
        self.machine.start(peers)
        self._start_containerd()
        self.import_image(self._pause_archive())
        self.start_kubelet()
        self.proxy = self.machine.process(
            "kube-proxy",
            [
                binary("kubernetes", "kube-proxy"),
                "--config",
                self.work_dir / "kube-proxy.yaml",
                "--hostname-override",
                self.name,
                "--v=2",
            ],
        )
        self.proxy.start()
        self.wait_ready()
        self._advertise_gpus()

    def stop(self) -> None:
        """The machine is gone, as by a power cut; the Node object stays until somebody deletes it."""
        for process in (self.kubelet, self.proxy, self.containerd):
            if process is not None:
                process.kill()
        self.machine.stop()

    def start_kubelet(self) -> None:
        """Start the kubelet (again); pods that ran without it are its own again."""
        self.kubelet = self.machine.process("kubelet", self._kubelet_command())
        self.kubelet.start()

    def kill_kubelet(self) -> None:
        """SIGKILL the kubelet; containers go on, and after the grace period the node counts as lost."""
        assert self.kubelet is not None
        self.kubelet.kill()

    def restart_kubelet(self) -> None:
        """Kill the kubelet, start it again and wait until it answers."""
        self.kill_kubelet()
        self.start_kubelet()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until the kubelet answers through the API server and the node is Ready and schedulable."""

        def ready() -> bool:
            assert self.kubelet is not None
            self.kubelet.check()
            node = self._core.read_node(self.name)
            answers = self._core.connect_get_node_proxy_with_path(self.name, "healthz") == "ok"
            conditions = {item.type: item.status for item in node.status.conditions or []}
            taints = {item.key for item in node.spec.taints or []}
            return answers and conditions.get("Ready") == "True" and "node.kubernetes.io/not-ready" not in taints

        wait_for(ready, _DEADLINE_S, f"node {self.name} to be Ready", ignore=(ApiException,), context=self.logs)

    def import_image(self, archive: Path) -> None:
        """Load an OCI archive; pods name its image with ``imagePullPolicy: Never``.

        Raises:
            RuntimeError: containerd refused it; the message is what `ctr` said.
        """
        command = [self._program("ctr"), "--address", self.containerd_socket, "--namespace", _NAMESPACE]
        done = subprocess.run([*command, "images", "import", archive], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{archive} could not be imported into {self.name}: {done.stderr or done.stdout}")

    def logs(self, size: int = 3000) -> str:
        """The end of the log of each of its programs."""
        return "\n".join(
            f"--- {path.name}\n{path.read_bytes()[-size:].decode(errors='replace')}"
            for path in sorted(self.work_dir.glob("*.log"))
        )

    def check(self) -> bool:
        """True while everything runs.

        Raises:
            ProcessDied: something ended; the message holds the end of its log.
        """
        processes = (self.containerd, self.kubelet, self.proxy)
        return self.machine.check() and all(process is not None and process.check() for process in processes)

    def _start_containerd(self) -> None:
        # containerd finds its shim on PATH.
        path = os.pathsep.join([*([str(self._runtime)] if self._runtime else []), os.environ.get("PATH", os.defpath)])
        self.containerd = self.machine.process(
            "containerd",
            [self._program("containerd"), "--config", self.work_dir / "containerd.toml"],
            env={**os.environ, "PATH": path},
        )
        self.containerd.start()
        wait_for(self._containerd_answers, _DEADLINE_S, "containerd to answer", poll_s=0.05, context=self.logs)

    def _containerd_answers(self) -> bool:
        assert self.containerd is not None
        self.containerd.check()
        asked = [self._program("ctr"), "--address", self.containerd_socket, "--connect-timeout", "2s", "version"]
        return (
            self.containerd_socket.exists() and subprocess.run(asked, capture_output=True, check=False).returncode == 0
        )

    def _program(self, name: str) -> str | Path:
        return self._runtime / name if self._runtime else name

    def _kubelet_command(self) -> list[str | Path]:
        labels = ",".join(f"{key}={value}" for key, value in self._labels.items())
        return [
            binary("kubernetes", "kubelet"),
            f"--config={self.work_dir / 'kubelet.yaml'}",
            f"--kubeconfig={self.work_dir / 'kubelet.kubeconfig'}",
            f"--hostname-override={self.name}",
            f"--node-ip={self.machine.address}",
            f"--root-dir={self.work_dir / 'kubelet'}",
            *([f"--node-labels={labels}"] if labels else []),
            "--v=2",
        ]

    def _advertise_gpus(self) -> None:
        if not self.gpus:
            return
        # The kubelet copies the capacity by itself, but only with its next report.
        at = GPU.replace("/", "~1")
        patch = [
            {"op": "add", "path": f"/status/{field}/{at}", "value": str(self.gpus)}
            for field in ("capacity", "allocatable")
        ]
        self._core.patch_node_status(self.name, patch, _content_type="application/json-patch+json")

    def _pause_archive(self) -> Path:
        archive = self.cluster.work_dir / "pause.tar"
        if not archive.exists():
            write_image(archive, config.PAUSE_IMAGE, {"/pause": binary("pause")}, ["/pause"])
        return archive

    def _write_files(self, labels: dict[str, str]) -> None:
        cluster, work = self.cluster, self.work_dir
        authority = cluster.authority
        (work / "ca.crt").write_bytes(authority.pair.certificate)
        authority.server(self.name, [self.name, self.machine.address]).write(work, "kubelet")
        for file, user, groups in (
            ("kubelet", f"system:node:{self.name}", ("system:nodes",)),
            ("kube-proxy", "system:kube-proxy", ()),
        ):
            pair = authority.client(user, groups)
            write_kubeconfig(work / f"{file}.kubeconfig", cluster.entry_for_nodes(), user, pair.certificate, pair.key)
        (work / "cni").mkdir()
        (work / "cni" / "10-pods.conflist").write_text(config.cni(self.machine.pods_range))
        (work / "containerd.toml").write_text(config.containerd(work))
        (work / "kubelet.yaml").write_text(config.kubelet(work, work / "ca.crt"))
        (work / "kube-proxy.yaml").write_text(
            config.kube_proxy(work / "kube-proxy.kubeconfig", cluster.slot.pods_range)
        )
