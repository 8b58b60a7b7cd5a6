"""The real Kueue beside a control plane of the harness, and the objects a platform team makes for it.

Kueue runs as a process of this machine and the API server calls its webhooks by URL. It reads one certificate from a
path that cannot be configured (``/etc/kueue/metrics/certs``): its mount namespace has an ``/etc`` of its own, so that
several can run at once and nothing stays behind.
"""

from __future__ import annotations

import base64
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from .binaries import binary, module_source
from .controlplane import ControlPlane
from .process import LOOPBACK, Process, free_ports
from .waiting import wait_for

API_VERSION = "kueue.x-k8s.io/v1beta2"
GPU = "nvidia.com/gpu"
EXCLUDED_PREFIXES = ("cpu", "memory")
"""Resources that need no quota: queues of GPUs only admit pods that ask for these too."""
USER = "kueue"
"""Under this name its requests are in the audit log."""

_NAMESPACE = "kueue-system"
_START_DEADLINE_S = 90
_GROUPS = frozenset({"batch", "kueue.x-k8s.io"})
_CONVERTED = ("localqueues", "clusterqueues", "cohorts", "workloads", "multikueueclusters")
"""Kinds whose two versions Kueue converts, as its own kustomization says."""

_WEBHOOK_KINDS = ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
# `exec` keeps the process id, so that a kill of the process is a kill of Kueue.
_WITH_OWN_ETC = 'mount --bind "$1" /etc && shift && exec "$@"'


class Kueue:
    """Kueue as a context manager: CRDs, the running manager, its webhooks.

    Args:
        cluster: the control plane it manages the Jobs of.
        excluded_prefixes: resources that need no quota (``resources.excludeResourcePrefixes`` of its configuration).
    """

    def __init__(self, cluster: ControlPlane, *, excluded_prefixes: Sequence[str] = EXCLUDED_PREFIXES) -> None:
        """Write configuration and certificates; entering the context installs and starts."""
        self._cluster = cluster
        self._webhook_port, self._health_port = free_ports(2)
        self._source = module_source("kueue", "sigs.k8s.io/kueue")
        self._dir = cluster.work_dir / "kueue"
        etc = self._dir / "etc"
        serving = self._dir / "serving"
        pair = cluster.authority.server("kueue", (LOOPBACK,))
        for folder in (serving, etc / "kueue" / "metrics" / "certs"):
            folder.mkdir(parents=True, exist_ok=True)
            certificate, key = pair.write(folder, "tls")
            assert (certificate.name, key.name) == ("tls.crt", "tls.key")
        config = self._dir / "config.yaml"
        config.write_text(yaml.safe_dump(self._configuration(serving, excluded_prefixes)))
        # Mounting needs root, or a user namespace in which one is root.
        unshare = [_required("unshare"), "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
        self.process = Process(
            "kueue",
            [
                *unshare,
                *("sh", "-c", _WITH_OWN_ETC, "sh", etc),
                binary("kueue"),
                f"--config={config}",
                f"--kubeconfig={cluster.kubeconfig(USER, ('system:masters',))}",
                # The visibility API is an aggregated API: it would need a Service in front of this process.
                "--feature-gates=VisibilityOnDemand=false",
                "--zap-log-level=2",
            ],
            cluster.logs_dir / "kueue.log",
        )

    def __enter__(self) -> Self:
        """Install the CRDs, start Kueue, then let the API server call its webhooks."""
        try:
            self._cluster.kubectl("create", "namespace", _NAMESPACE)
            self._cluster.apply(self._crds())
            names = [f"crd/{crd['metadata']['name']}" for crd in self._crds()]
            self._cluster.kubectl("wait", "--for=condition=Established", "--timeout=60s", *names)
            self.start()
            self._cluster.apply(self._webhooks())
        except BaseException:
            self.process.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop Kueue; without its webhooks the API server works on. Its objects go with the control plane."""
        self.process.kill()
        if self._cluster.apiserver.running:
            for webhook in self._webhooks():
                self._cluster.kubectl("delete", webhook["kind"], webhook["metadata"]["name"], "--ignore-not-found")
        shutil.rmtree(self._dir, ignore_errors=True)

    def start(self) -> None:
        """Start the manager and wait until it is ready, its webhooks included."""
        self.process.start()

        def ready() -> bool:
            self.process.check()
            with urllib.request.urlopen(f"http://{LOOPBACK}:{self._health_port}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)

        wait_for(
            ready,
            _START_DEADLINE_S,
            "Kueue to be ready",
            ignore=(urllib.error.URLError, OSError),
            context=self.process.log_tail,
        )

    @property
    def memory_mib(self) -> float:
        """Resident memory of the manager now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(kib) / 1024

    def _configuration(self, serving: Path, excluded_prefixes: Sequence[str]) -> dict[str, Any]:
        return {
            "apiVersion": "config.kueue.x-k8s.io/v1beta2",
            "kind": "Configuration",
            "namespace": _NAMESPACE,
            "health": {"healthProbeBindAddress": f"{LOOPBACK}:{self._health_port}"},
            "metrics": {"bindAddress": "0"},
            "webhook": {"host": LOOPBACK, "port": self._webhook_port, "certDir": str(serving)},
            "internalCertManagement": {"enable": False},
            "leaderElection": {"leaderElect": False},
            "integrations": {"frameworks": ["batch/job"]},
            **({"resources": {"excludeResourcePrefixes": list(excluded_prefixes)}} if excluded_prefixes else {}),
        }

    def _client_config(self, path: str) -> dict[str, str]:
        return {
            "url": f"https://{LOOPBACK}:{self._webhook_port}{path}",
            "caBundle": base64.b64encode(self._cluster.authority.pair.certificate).decode(),
        }

    def _crds(self) -> list[dict[str, Any]]:
        crds = []
        for path in sorted((self._source / "config/components/crd/bases").glob("*.yaml")):
            crd = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
            if crd["spec"]["names"]["plural"] in _CONVERTED:
                webhook = {"clientConfig": self._client_config("/convert"), "conversionReviewVersions": ["v1"]}
                crd["spec"]["conversion"] = {"strategy": "Webhook", "webhook": webhook}
            crds.append(crd)
        return crds

    def _webhooks(self) -> list[dict[str, Any]]:
        """Its webhooks for Jobs and its own kinds, called by URL instead of through a Service."""
        manifests = (self._source / "config/components/webhook/manifests.yaml").read_text()
        configurations = []
        for configuration in yaml.safe_load_all(manifests):
            if configuration is None or configuration["kind"] not in _WEBHOOK_KINDS:
                continue
            configuration["metadata"]["name"] = f"kueue-{configuration['metadata']['name']}"
            configuration["webhooks"] = [
                {**webhook, "clientConfig": self._client_config(webhook["clientConfig"]["service"]["path"])}
                for webhook in configuration["webhooks"]
                if all(set(rule["apiGroups"]) <= _GROUPS for rule in webhook["rules"])
            ]
            configurations.append(configuration)
        return configurations


def workload_crd() -> dict[str, Any]:
    """The CRD of Kueue's Workloads alone, for a cluster in which Kueue is installed and asleep."""
    source = module_source("kueue", "sigs.k8s.io/kueue")
    crd: dict[str, Any] = yaml.safe_load(
        (source / "config/components/crd/bases/kueue.x-k8s.io_workloads.yaml").read_text()
    )
    crd["spec"].pop("conversion", None)
    return crd


def _required(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise RuntimeError(f"{program} (package util-linux) is needed to run Kueue beside other ones; install it")
    return found


def resource_flavor(name: str, node_labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A kind of node that quota is given for; Kueue adds its labels to the node selector of admitted Jobs."""
    spec = {"nodeLabels": dict(node_labels)} if node_labels else {}
    return {"apiVersion": API_VERSION, "kind": "ResourceFlavor", "metadata": {"name": name}, "spec": spec}


def cluster_queue(
    name: str, flavor: str, gpus: int, *, namespace_selector: Mapping[str, Any] | None = None, **spec: Any
) -> dict[str, Any]:
    """A quota of GPUs only, of one flavor; a more urgent workload may take it from a less urgent one."""
    flavors = [{"name": flavor, "resources": [{"name": GPU, "nominalQuota": gpus}]}]
    wire = {
        "namespaceSelector": dict(namespace_selector or {}),
        "queueingStrategy": "BestEffortFIFO",
        "preemption": {"withinClusterQueue": "LowerPriority"},
        "resourceGroups": [{"coveredResources": [GPU], "flavors": flavors}],
    }
    return {"apiVersion": API_VERSION, "kind": "ClusterQueue", "metadata": {"name": name}, "spec": wire | spec}


def local_queue(name: str, namespace: str, queue: str, **spec: Any) -> dict[str, Any]:
    """What the jobs of a namespace name in ``compute.queue``."""
    metadata = {"name": name, "namespace": namespace}
    wire = {"clusterQueue": queue} | spec
    return {"apiVersion": API_VERSION, "kind": "LocalQueue", "metadata": metadata, "spec": wire}


def priority_class(name: str, value: int) -> dict[str, Any]:
    """What jobs name in ``compute.priorityClass``; a higher value goes first and may preempt a lower one."""
    return {
        "apiVersion": API_VERSION,
        "kind": "WorkloadPriorityClass",
        "metadata": {"name": name},
        "value": value,
        "description": f"{name} fine-tuning",
    }
