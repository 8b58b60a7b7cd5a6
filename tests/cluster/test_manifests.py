"""Decisions that nobody can forge, and what the operator may not do. The rest of manifests/: tests/manifests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.waiting import wait_for

GOLDEN = Path(__file__).parents[1] / "operator" / "golden" / "output"
OPERATOR = "system:serviceaccount:finetune-system:finetune-operator"
SERVICE_ACCOUNTS = ("system:serviceaccounts", "system:serviceaccounts:finetune-system", "system:authenticated")
PEOPLE = ("system:authenticated",)


def version(namespace: str, name: str = "triage-v1") -> dict[str, Any]:
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "AdapterVersion",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "adapter": "triage",
            "version": 1,
            "uri": "s3://bucket/store/versions/v1",
            "digest": "a" * 64,
            "sizeBytes": 1,
            "servedAs": "adapter",
            "base": {"source": "s3://m/x", "revision": "r", "digest": "d"},
            "origin": {"job": "j", "uid": "u", "run": 1},
            "dataDigest": "d",
            "fingerprint": "f",
            "metrics": {"f1": 0.9},
            "verdict": "Passed",
            "createdAt": "2026-01-01T00:00:00Z",
        },
    }


def create(cluster: Cluster, manifest: dict[str, Any], user: str | None, groups: tuple[str, ...] = PEOPLE) -> str:
    done = cluster.kubectl("create", "-f", "-", input=yaml.safe_dump(manifest), user=user, groups=groups, check=False)
    return "" if done.returncode == 0 else done.stderr


def decide(cluster: Cluster, namespace: str, user: str, by: str, decision: str = "approve") -> str:
    """Add or change one decision as a user; the error, or nothing."""
    shown = cluster.kubectl("get", "adapterversion", "triage-v1", "-n", namespace, "-o", "json").stdout
    decisions = [d for d in json.loads(shown)["spec"].get("decisions", []) if d["by"] != by]
    if decision:
        decisions.append({"by": by, "decision": decision})
    patch = json.dumps({"spec": {"decisions": decisions}})
    done = cluster.kubectl(
        *("patch", "adapterversion", "triage-v1", "-n", namespace, "--type=merge", "-p", patch),
        user=user,
        groups=PEOPLE,
        check=False,
    )
    return "" if done.returncode == 0 else done.stderr


@pytest.fixture
def policy(installed: Cluster, namespace: str) -> Cluster:
    """The cluster once the admission policy is in force (it compiles in the background)."""

    def refused() -> bool:
        return "only the operator creates" in create(installed, version(namespace, "probe-v1"), None)

    def tried() -> bool:
        installed.kubectl("delete", "adapterversion", "probe-v1", "-n", namespace, "--ignore-not-found")
        return refused()

    wait_for(tried, 60, "the admission policy to be in force")
    return installed


def test_only_the_operator_creates_versions(policy: Cluster, namespace: str) -> None:
    assert "only the operator creates AdapterVersions" in create(policy, version(namespace), None)
    assert create(policy, version(namespace), OPERATOR, SERVICE_ACCOUNTS) == ""


def test_a_decision_cannot_be_forged(policy: Cluster, namespace: str) -> None:
    assert create(policy, version(namespace), OPERATOR, SERVICE_ACCOUNTS) == ""
    writer = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "writer", "namespace": namespace},
        "rules": [
            {"apiGroups": ["finetune.dev"], "resources": ["adapterversions"], "verbs": ["get", "update", "patch"]}
        ],
    }
    policy.apply(writer)
    policy.kubectl("create", "rolebinding", "writer", "--role=writer", "--user=wendy", "-n", namespace)
    policy.kubectl("create", "rolebinding", "ada", "--clusterrole=finetune-approver", "--user=ada", "-n", namespace)

    assert "set by: wendy" in decide(policy, namespace, "wendy", "ada")
    assert "the verb approve" in decide(policy, namespace, "wendy", "wendy")
    assert decide(policy, namespace, "ada", "ada") == ""
    assert "set by: wendy" in decide(policy, namespace, "wendy", "ada", "")
    shown = policy.kubectl("get", "adapterversion", "triage-v1", "-n", namespace, "-o", "json").stdout
    assert [(d["by"], d["decision"]) for d in json.loads(shown)["spec"]["decisions"]] == [("ada", "approve")]


def test_everything_but_decisions_is_immutable(policy: Cluster, namespace: str) -> None:
    assert create(policy, version(namespace), OPERATOR, SERVICE_ACCOUNTS) == ""
    patch = json.dumps({"spec": {"digest": "b" * 64}})
    done = policy.kubectl(
        "patch", "adapterversion", "triage-v1", "-n", namespace, "--type=merge", "-p", patch, check=False
    )
    assert done.returncode != 0
    assert "immutable" in done.stderr


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("get", "secrets"),
        ("list", "secrets"),
        ("create", "pods/exec"),
        ("update", "finetunejobs.finetune.dev"),
        ("patch", "adapters.finetune.dev"),
        ("delete", "adapterversions.finetune.dev"),
        ("approve", "adapterversions.finetune.dev"),
        ("create", "pods"),
    ],
)
def test_the_operator_may_not(installed: Cluster, namespace: str, verb: str, resource: str) -> None:
    answer = installed.kubectl(
        "auth", "can-i", verb, resource, "-n", namespace, user=OPERATOR, groups=SERVICE_ACCOUNTS, check=False
    )
    assert answer.stdout.strip() == "no"


PODS = [
    (file.stem, body["spec"]["template"])
    for file in sorted(GOLDEN.glob("*.yaml"))
    for body in yaml.safe_load_all(file.read_text())
    if body["kind"] == "Job"
]


@pytest.fixture(scope="module")
def restricted(installed: Cluster) -> Iterator[str]:
    """A namespace under Pod Security `restricted` with the service accounts of the golden pods."""
    name = "golden-pods"
    installed.kubectl("create", "namespace", name)
    installed.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    for account in sorted({pod["spec"]["serviceAccountName"] for _, pod in PODS} - {"default"}):
        installed.kubectl("create", "serviceaccount", account, "-n", name)
    installed.kubectl("wait", "--for=create", "serviceaccount/default", "-n", name, "--timeout=30s")
    yield name
    installed.kubectl("delete", "namespace", name, "--wait=false")


@pytest.mark.parametrize(("name", "template"), PODS, ids=[name for name, _ in PODS])
def test_the_api_server_takes_every_pod_under_restricted_as_it_is(
    installed: Cluster, restricted: str, name: str, template: dict[str, Any]
) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", **template, "metadata": {**template["metadata"], "name": name}}
    command = ("create", "-f", "-", "-n", restricted, "--dry-run=server", "--validate=strict", "-o", "json")
    done = installed.kubectl(*command, input=yaml.safe_dump(pod), check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    # A field that the API server does not know or has switched off is dropped without a word.
    kept = {volume["name"]: volume for volume in json.loads(done.stdout)["spec"]["volumes"]}
    for volume in template["spec"]["volumes"]:
        (source,) = set(volume) - {"name"}
        assert source in kept[volume["name"]]


def test_a_pod_that_is_not_restricted_is_refused_there(installed: Cluster, restricted: str) -> None:
    _, template = PODS[0]
    spec = {**template["spec"], "volumes": [{"name": "node", "hostPath": {"path": "/"}}, *template["spec"]["volumes"]]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "host"}, "spec": spec}
    command = ("create", "-f", "-", "-n", restricted, "--dry-run=server")
    done = installed.kubectl(*command, input=yaml.safe_dump(pod), check=False)
    assert "restricted volume types" in done.stderr
