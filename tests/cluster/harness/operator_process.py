"""The real operator as a child process, with the rights that the manifests give it and no others."""

from __future__ import annotations

import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from .cluster import Cluster
from .process import LOOPBACK, Process, free_ports
from .progress import ProgressEndpoint
from .waiting import wait_for

OPERATOR_NAMESPACE = "finetune-system"
SERVICE_ACCOUNT = "system:serviceaccount:finetune-system:finetune-operator"
GROUPS = ("system:serviceaccounts", "system:serviceaccounts:finetune-system", "system:authenticated")
START_DEADLINE_S = 60
LEASE_SECONDS = 10
"""Long enough for a busy machine: an operator that loses its Lease ends, and nobody starts it again in a test."""


class OperatorProcess(Process):
    """One replica: for the whole cluster as it is shipped, or for one namespace with its Lease there."""

    def __init__(
        self,
        cluster: Cluster,
        namespace: str | None = None,
        *,
        name: str = "operator",
        user: str = SERVICE_ACCOUNT,
        extra: Sequence[str] = (),
        progress: bool = False,
    ) -> None:
        """Describe the process; `start` or `started` runs it. Another `user` needs the same rights.

        `progress` makes pods push theirs to `self.progress`.
        """
        self.port = free_ports(1)[0]
        where = f"{name}-{namespace or OPERATOR_NAMESPACE}"
        self.progress = ProgressEndpoint(cluster.work_dir / f"{where}-tls") if progress else None
        self.kubeconfig = cluster.kubeconfig(user, GROUPS)
        command: list[str | Path] = [
            *(sys.executable, "-m", "finetune_operator.main"),
            *("--kubeconfig", self.kubeconfig),
            *(("--namespace", namespace) if namespace else ()),
            *("--lease-namespace", namespace or OPERATOR_NAMESPACE),
            *("--lease-seconds", str(LEASE_SECONDS)),
            *("--health-port", str(self.port)),
            *("--metrics-port", str(self.port)),
            *(self.progress.arguments if self.progress else ()),
            *extra,
        ]
        super().__init__(name, command, cluster.work_dir / f"{where}.log")

    def started(self) -> OperatorProcess:
        """Start and wait until it is ready."""
        self.start()
        wait_for(
            lambda: self.check() and self.get("readyz")[0] == 200,
            START_DEADLINE_S,
            f"{self.name} to be ready",
            ignore=(OSError,),
            context=self.log_tail,
        )
        return self

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of an HTTP endpoint. Raises OSError while nothing listens."""
        try:
            with urllib.request.urlopen(f"http://{LOOPBACK}:{self.port}/{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def readiness(self) -> str:
        """What /readyz says; empty while nothing listens."""
        try:
            return self.get("readyz")[1]
        except OSError:
            return ""

    def leads(self) -> bool:
        """Whether this replica holds the lease, by its own metrics; not while it does not answer."""
        try:
            return "finetune_leader 1.0" in self.get("metrics")[1]
        except OSError:
            return False

    def leading(self) -> OperatorProcess:
        """Wait until this replica leads."""
        wait_for(
            lambda: self.check() and self.leads(),
            START_DEADLINE_S,
            f"{self.name} to lead",
            context=self.log_tail,
        )
        return self

    def stop(self) -> int | None:
        """SIGTERM, as Kubernetes does it; the exit status, or None where it had to be killed."""
        self.signal(signal.SIGTERM)
        code = self.wait(START_DEADLINE_S)
        self.kill()
        return code

    def pause(self) -> None:
        """SIGSTOP: a process that is starved, or a machine that hangs."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)


def grant_lease(cluster: Cluster, namespace: str) -> None:
    """Let the operator keep its Lease in this namespace: the manifests allow it in the operator's own only."""
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "operator-lease", "namespace": namespace},
        "rules": [
            {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]}
        ],
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "operator-lease", "namespace": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "operator-lease"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": SERVICE_ACCOUNT}],
    }
    cluster.apply([role, binding])
