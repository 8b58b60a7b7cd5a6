"""A real Kubernetes control plane on loopback: etcd, API server, controller manager, scheduler.

Ready in seconds, no container runtime needed, gone with the test process. Pods are created and bound for real but no
kubelet runs them: ``kubelet.py`` plays that part.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import ssl
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kubernetes import client

from .binaries import binary
from .cluster import Cluster, write_kubeconfig
from .pki import Authority, service_account_keys
from .policies import wait_for_policies
from .process import LOOPBACK, Process, free_ports
from .waiting import wait_for

WORK_PREFIX = "finetune-cluster-"
"""Begins the name of the folder of each instance."""

_START_DEADLINE_S = 90
_SERVICE_RANGE = "10.96.0.0/16"
_SERVICE_NAMES = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")

# Hand-made nodes renew no lease: this controller would taint them unreachable after 50 s and evict their pods.
_WITHOUT_NODE_LIFECYCLE = "--controllers=*,-node-lifecycle-controller"

_AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
"""


class ControlPlane(Cluster):
    """A control plane as a context manager; every instance is independent and has its own ports.

    Args:
        audit: write an audit log of every request's metadata, read by ``audit_events``.
        host: the address the API server binds; 0.0.0.0 for a node in its own network namespace.
        names: further names and addresses in the API server's certificate.
        node_lifecycle: run the controller that declares nodes without a fresh lease lost (off: nodes are made by hand).
        apiserver_args, controller_args: further flags, for tests of a refusal, a limit or a feature.
        keep: leave the folder with the logs behind.
    """

    def __init__(
        self,
        *,
        audit: bool = False,
        host: str = LOOPBACK,
        names: Sequence[str] = (),
        node_lifecycle: bool = False,
        apiserver_args: Sequence[str] = (),
        controller_args: Sequence[str] = (),
        keep: bool = False,
    ) -> None:
        work = Path(tempfile.mkdtemp(prefix=WORK_PREFIX))
        super().__init__(work / "admin.kubeconfig", work)
        self.logs_dir = work / "logs"
        self.logs_dir.mkdir()
        self.audit_log = work / "audit.log" if audit else None
        self.watches_nodes = node_lifecycle
        self._keep = keep
        self._host = host
        etcd_client, etcd_peer, self.port = free_ports(3)
        self._etcd_url = f"http://{LOOPBACK}:{etcd_client}"
        self.authority = Authority()
        self._write_pki(names)
        # The Node authorizer and RBAC's bootstrap roles know the components by these names.
        components = {name: self.kubeconfig(f"system:{name}") for name in ("kube-controller-manager", "kube-scheduler")}
        self.etcd = self._process("etcd", self._etcd_args(etcd_peer))
        self.apiserver = self._process("kube-apiserver", [*self._apiserver_args(), *apiserver_args])
        self.controller_manager = self._process(
            "kube-controller-manager",
            [
                *self._controller_args(components["kube-controller-manager"]),
                *([] if node_lifecycle else [_WITHOUT_NODE_LIFECYCLE]),
                *controller_args,
            ],
        )
        self.scheduler = self._process(
            "kube-scheduler",
            [f"--kubeconfig={components['kube-scheduler']}", "--leader-elect=false", "--secure-port=0"],
        )

    @property
    def server(self) -> str:
        """The URL of the API server."""
        return f"https://{LOOPBACK}:{self.port}"

    def __enter__(self) -> Self:
        """Start everything and wait until pods can be created."""
        try:
            self.etcd.start()
            self.start_apiserver()
            self.controller_manager.start()
            self.scheduler.start()
            # Pods are refused until the controller manager has made the namespace's service account.
            core = client.CoreV1Api(self.api())
            wait_for(
                lambda: (
                    self.controller_manager.check()
                    and self.scheduler.check()
                    and core.list_namespaced_service_account("default", field_selector="metadata.name=default").items
                ),
                _START_DEADLINE_S,
                "the default service account",
                poll_s=0.05,
                context=self.controller_manager.log_tail,
            )
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill everything and remove the files."""
        self.close()

    def close(self) -> None:
        """SIGKILL all processes (a polite end costs the API server seconds and saves nothing); remove the files."""
        for process in (self.scheduler, self.controller_manager, self.apiserver, self.etcd):
            process.kill()
        if not self._keep:
            shutil.rmtree(self.work_dir, ignore_errors=True)

    def start_apiserver(self) -> None:
        """Start the API server and wait until it is ready."""
        self.apiserver.start()
        context = ssl.create_default_context(cadata=self.authority.pair.certificate.decode())
        context.load_cert_chain(self.work_dir / "admin.crt", self.work_dir / "admin.key")

        def ready() -> bool:
            self.apiserver.check()
            with urllib.request.urlopen(f"{self.server}/readyz", timeout=5, context=context) as answer:
                return bool(answer.status == 200)

        wait_for(
            ready,
            _START_DEADLINE_S,
            "a ready API server",
            poll_s=0.05,
            ignore=(urllib.error.URLError, OSError),
            context=lambda: f"{self.etcd.log_tail(1500)}\n{self.apiserver.log_tail()}",
        )

    def stop_apiserver(self) -> None:
        """Kill the API server; clients see refused connections until ``start_apiserver``."""
        self.apiserver.kill()
        if self.audit_log is not None and self.audit_log.exists():
            # What the kill cut in two is no event, and the next API server would write on behind it.
            written = self.audit_log.read_bytes()
            os.truncate(self.audit_log, written.rfind(b"\n") + 1)

    def restart_apiserver(self) -> None:
        """Kill the API server and start it again on the same port: every watch breaks, nothing is lost.

        Ends when policies about our kinds judge again, so that the next test finds them as it expects.
        """
        self.stop_apiserver()
        self.start_apiserver()
        wait_for_policies(self)

    def audit_events(self, user: str | None = None) -> Iterator[dict[str, Any]]:
        """The audit events so far (ResponseComplete and ResponseStarted), all or those of one user."""
        if self.audit_log is None:
            raise ValueError("this control plane keeps no audit log: start it with ControlPlane(audit=True)")
        if not self.audit_log.exists():
            return
        for line in self.audit_log.read_text().splitlines(keepends=True):
            if line.endswith("\n"):  # the last line may be half-written
                event = json.loads(line)
                name = event["user"].setdefault("username", "")  # there is none where authentication failed
                if user in (None, name):
                    yield event

    def _client_certificate(self, user: str, groups: Sequence[str]) -> tuple[bytes, bytes]:
        pair = self.authority.client(user, groups)
        return pair.certificate, pair.key

    def _kubectl(self) -> Path:
        return binary("kubernetes", "kubectl")

    def _process(self, name: str, args: Sequence[str]) -> Process:
        program = binary("etcd" if name == "etcd" else "kubernetes", name)
        return Process(name, [program, *args], self.logs_dir / f"{name}.log")

    def _write_pki(self, names: Sequence[str]) -> None:
        self.authority.pair.write(self.work_dir, "ca")
        hosts = ("localhost", LOOPBACK, "10.96.0.1", *_SERVICE_NAMES, *names)
        self.authority.server("kube-apiserver", hosts).write(self.work_dir, "apiserver")
        self.authority.client("kube-apiserver-kubelet-client", ("system:masters",)).write(
            self.work_dir, "kubelet-client"
        )
        public, private = service_account_keys()
        (self.work_dir / "sa.pub").write_bytes(public)
        (self.work_dir / "sa.key").touch(0o600)
        (self.work_dir / "sa.key").write_bytes(private)
        (self.work_dir / "audit-policy.yaml").write_text(_AUDIT_POLICY)
        admin = self.authority.client("admin", ("system:masters",))
        admin.write(self.work_dir, "admin")
        cluster: dict[str, object] = {
            "server": self.server,
            "certificate-authority-data": base64.b64encode(self.authority.pair.certificate).decode(),
        }
        write_kubeconfig(self.admin_kubeconfig, cluster, "admin", admin.certificate, admin.key)

    def _etcd_args(self, peer_port: int) -> list[str]:
        peer_url = f"http://{LOOPBACK}:{peer_port}"
        return [
            f"--data-dir={self.work_dir / 'etcd'}",
            f"--listen-client-urls={self._etcd_url}",
            f"--advertise-client-urls={self._etcd_url}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=default={peer_url}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ]

    def _apiserver_args(self) -> list[str]:
        work = self.work_dir
        args = [
            f"--etcd-servers={self._etcd_url}",
            f"--bind-address={self._host}",
            f"--advertise-address={LOOPBACK if self._host == LOOPBACK else '0.0.0.0'}",
            f"--secure-port={self.port}",
            f"--tls-cert-file={work / 'apiserver.crt'}",
            f"--tls-private-key-file={work / 'apiserver.key'}",
            f"--client-ca-file={work / 'ca.crt'}",
            f"--kubelet-certificate-authority={work / 'ca.crt'}",
            f"--kubelet-client-certificate={work / 'kubelet-client.crt'}",
            f"--kubelet-client-key={work / 'kubelet-client.key'}",
            "--kubelet-preferred-address-types=InternalIP",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--service-account-key-file={work / 'sa.pub'}",
            f"--service-account-signing-key-file={work / 'sa.key'}",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-cluster-ip-range={_SERVICE_RANGE}",
            "--endpoint-reconciler-type=none",
            "--allow-privileged=true",
            "--profiling=false",
        ]
        if self.audit_log is not None:
            args += [
                f"--audit-policy-file={work / 'audit-policy.yaml'}",
                f"--audit-log-path={self.audit_log}",
                "--audit-log-mode=blocking",
            ]
        return args

    def _controller_args(self, kubeconfig: Path) -> list[str]:
        work = self.work_dir
        return [
            f"--kubeconfig={kubeconfig}",
            f"--root-ca-file={work / 'ca.crt'}",
            f"--service-account-private-key-file={work / 'sa.key'}",
            f"--cluster-signing-cert-file={work / 'ca.crt'}",
            f"--cluster-signing-key-file={work / 'ca.key'}",
            f"--service-cluster-ip-range={_SERVICE_RANGE}",
            "--leader-elect=false",
            "--secure-port=0",
            "--use-service-account-credentials",  # every controller has a role of its own
            "--kube-api-qps=300",
            "--kube-api-burst=600",
        ]
