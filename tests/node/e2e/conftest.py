"""The product as a platform team installs it: manifests, images and people on a real node."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.harness.binaries import cache_root
from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.operator_process import OPERATOR_NAMESPACE
from tests.cluster.harness.policies import wait_for_policies
from tests.cluster.harness.s3 import S3Server
from tests.node.e2e.tenant import Tenant
from tests.runner.tiny import make_tiny_model, tickets

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def installed_node(cluster: Cluster) -> Cluster:
    """The cluster with the operator installed as pods and live progress on.

    The nodes of a cluster that is given must have both images (`make kind-test` loads them).
    """
    cluster.kubectl("apply", "-f", ROOT / "manifests" / "base" / "namespace.yaml")
    secret = subprocess.run(
        [sys.executable, "-m", "finetune_cli", "certificate", "--namespace", OPERATOR_NAMESPACE],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    cluster.kubectl("apply", "--server-side", "-f", "-", input=secret)
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-k", Path(__file__).parent / "installation")
    ready = cluster.kubectl(
        *("rollout", "status", "deployment/finetune-operator", "-n", OPERATOR_NAMESPACE, "--timeout=180s"),
        check=False,
        timeout_s=200,
    )
    assert ready.returncode == 0, why_not_ready(cluster)
    wait_for_policies(cluster)
    return cluster


def why_not_ready(cluster: Cluster) -> str:
    """State and logs of the operator's pods."""
    shown = [
        cluster.kubectl(*command, "-n", OPERATOR_NAMESPACE, check=False).stdout
        for command in (
            ("get", "pods", "-o", "wide"),
            ("describe", "pods"),
            ("logs", "-l", "app.kubernetes.io/name=finetune-operator", "--tail=40"),
        )
    ]
    return "\n".join(shown)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model small enough to train in seconds."""
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def base_model() -> Path:
    """The base model of the example; made by real pre-training once per machine."""
    model = cache_root() / "support-triage" / "base-model"
    model.parent.mkdir(parents=True, exist_ok=True)
    script = ROOT / "examples" / "support-triage" / "make_base_model.py"
    subprocess.run([sys.executable, script, "--output", model], check=True)
    return model


@pytest.fixture(scope="session")
def make_tenant(installed_node: Cluster, s3_for_pods: S3Server, tiny_model: Path) -> Callable[[], Tenant]:
    """Makes tenants that have a tiny model and tickets in their bucket."""

    def make() -> Tenant:
        tenant = Tenant(installed_node, s3_for_pods)
        tenant.upload(tiny_model, "models/tiny")
        tenant.put_rows("data/train.jsonl", [{"messages": row.messages} for row in tickets(320, 5)])
        return tenant

    return make


@pytest.fixture
def tenant(make_tenant: Callable[[], Tenant]) -> Iterator[Tenant]:
    """A tenant of this test's own."""
    with make_tenant() as made:
        yield made
