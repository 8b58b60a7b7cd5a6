"""What is installed, on a real API server: accepted as it is, unchanged by a second time, and its roles."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.cluster.harness.binaries import module_source
from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.waiting import wait_for
from tests.manifests.people import PEOPLE
from tests.manifests.rendering import OVERLAYS, kustomized, objects, templated

KINDS = (
    "crd,namespace,serviceaccount,clusterrole,clusterrolebinding,role,rolebinding,deployment,service,pdb,networkpolicy,"
    "validatingadmissionpolicy,validatingadmissionpolicybinding"
)


@pytest.fixture(scope="module")
def team_a(installed: Cluster) -> Cluster:
    """The namespace that the overlay single-namespace names."""
    installed.kubectl("create", "namespace", "team-a", check=False)
    return installed


@pytest.mark.parametrize("overlay", ["cluster-wide", "single-namespace", "kind"])
def test_the_api_server_accepts_every_object_without_a_warning(team_a: Cluster, overlay: str) -> None:
    done = team_a.kubectl(
        *("apply", "--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts", "-f", "-"),
        input=kustomized(OVERLAYS / overlay),
    )
    wanted = len(objects(kustomized(OVERLAYS / overlay)))
    assert done.stdout.count("serverside-applied (server dry run)") == wanted
    assert done.stderr == ""


def test_the_api_server_accepts_what_the_chart_renders(team_a: Cluster) -> None:
    done = team_a.kubectl(
        *("apply", "--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts", "-f", "-"),
        input=templated("monitoring.dashboard=true", "policies.strictSources=true"),
    )
    assert done.stderr == ""


def test_the_prometheus_operator_understands_the_monitoring_component(installed: Cluster) -> None:
    source = module_source("prometheus-operator", "github.com/prometheus-operator/prometheus-operator")
    crds = source / "example" / "prometheus-operator-crd"
    names = ("servicemonitors", "prometheusrules")
    for name in names:
        installed.kubectl("apply", "--server-side", "-f", crds / f"monitoring.coreos.com_{name}.yaml")
    established = [f"crd/{name}.monitoring.coreos.com" for name in names]
    try:
        installed.kubectl("wait", "--for=condition=Established", "--timeout=60s", *established)
        monitoring = [
            yaml.safe_dump(item)
            for (group, _, _, _), item in objects(
                templated("monitoring.serviceMonitor=true", "monitoring.prometheusRule=true")
            ).items()
            if group.startswith("monitoring.coreos.com/")
        ]
        assert len(monitoring) == len(names)
        done = installed.kubectl(
            *("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-"),
            input="---\n".join(monitoring),
        )
        assert done.stdout.count("serverside-applied (server dry run)") == len(names)
        assert done.stderr == ""
    finally:
        installed.kubectl("delete", *established)


def test_applying_twice_changes_nothing(installed: Cluster) -> None:
    base = OVERLAYS.parent / "base"
    names = {(kind, namespace, name) for (_, kind, namespace, name) in objects(kustomized(base))}

    def versions() -> dict[tuple[str, str, str], str]:
        items = json.loads(installed.kubectl("get", KINDS, "-A", "-o", "json").stdout)["items"]
        found = {
            (item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]): item["metadata"]
            for item in items
        }
        # The controllers' status of a Deployment or CRD moves on by itself: what people wrote has a generation.
        return {
            key: str(data.get("generation") or data["resourceVersion"]) for key, data in found.items() if key in names
        }

    before = versions()
    assert set(before) == names
    installed.kubectl("apply", "--server-side", "-k", base)
    assert versions() == before
    diff = installed.kubectl("diff", "--server-side", "-k", base, check=False)
    assert (diff.returncode, diff.stdout) == (0, "")


def test_every_policy_has_a_binding_and_no_expression_is_in_doubt(installed: Cluster) -> None:
    policies = json.loads(installed.kubectl("get", "validatingadmissionpolicies", "-o", "json").stdout)["items"]
    ours = [item["metadata"]["name"] for item in policies if item["metadata"]["name"].startswith("finetune-")]
    bindings = json.loads(installed.kubectl("get", "validatingadmissionpolicybindings", "-o", "json").stdout)["items"]
    assert {item["spec"]["policyName"] for item in bindings} >= set(ours)
    assert len(ours) == 5

    def checked() -> bool:
        shown = [
            json.loads(installed.kubectl("get", "validatingadmissionpolicy", name, "-o", "json").stdout)
            for name in ours
        ]
        assert [item.get("status", {}).get("typeChecking", {}).get("expressionWarnings") for item in shown] == [
            None
        ] * 5
        assert {item["spec"]["failurePolicy"] for item in shown} == {"Fail"}
        return all(item["status"].get("observedGeneration") == item["metadata"]["generation"] for item in shown)

    wait_for(checked, 60, "the policies to be type-checked", ignore=(KeyError,))


def test_deployments_of_all_overlays_pass_pod_security_restricted(installed: Cluster) -> None:
    for overlay in ("cluster-wide", "single-namespace", "kind"):
        [deployment] = [
            item for (_, kind, _, _), item in objects(kustomized(OVERLAYS / overlay)).items() if kind == "Deployment"
        ]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "like-the-operator", "namespace": "finetune-system"},
            "spec": deployment["spec"]["template"]["spec"],
        }
        done = installed.kubectl("create", "--dry-run=server", "-f", "-", input=yaml.safe_dump(pod), check=False)
        assert (done.returncode, done.stderr) == (0, "")


ROLES: list[tuple[str, dict[str, str]]] = [
    (
        "edit",
        {
            "create finetunejobs.finetune.dev": "yes",
            "use secrets/any": "yes",
            "use serviceaccounts/any": "yes",
            "list adapterversions.finetune.dev": "yes",
            "approve adapterversions.finetune.dev": "no",
            "update adapters.finetune.dev": "no",
            "govern adapters.finetune.dev": "no",
            "update finetunejobs.finetune.dev --subresource=status": "no",
            "create gpupools.finetune.dev": "no",
        },
    ),
    (
        "admin",
        {"approve adapterversions.finetune.dev": "no", "govern adapters.finetune.dev": "no", "use secrets/x": "yes"},
    ),
    (
        "view",
        {
            "list finetunejobs.finetune.dev": "yes",
            "list adapterversions.finetune.dev": "yes",
            "create finetunejobs.finetune.dev": "no",
            "use secrets/any": "no",
        },
    ),
    (
        "finetune-author",
        {
            "create finetunejobs.finetune.dev": "yes",
            "use serviceaccounts/default": "yes",
            "use serviceaccounts/finetune-runner": "yes",
            "use serviceaccounts/other": "no",
            "use secrets/any": "no",
            "get secrets": "no",
            "create pods": "no",
        },
    ),
    (
        "finetune-approver",
        {
            "approve adapterversions.finetune.dev": "yes",
            "patch adapterversions.finetune.dev": "yes",
            "create adapterversions.finetune.dev": "no",
            "patch adapters.finetune.dev": "yes",
            "create adapters.finetune.dev": "no",
            "govern adapters.finetune.dev": "no",
            "create finetunejobs.finetune.dev": "no",
        },
    ),
    (
        "finetune-policy-owner",
        {
            "create adapters.finetune.dev": "yes",
            "govern adapters.finetune.dev": "yes",
            "delete adapters.finetune.dev": "yes",
            "approve adapterversions.finetune.dev": "no",
            "patch adapterversions.finetune.dev": "no",
        },
    ),
]


@pytest.mark.parametrize(("role", "answers"), ROLES, ids=[role for role, _ in ROLES])
def test_what_a_role_may_do(installed: Cluster, namespace: str, role: str, answers: dict[str, str]) -> None:
    user = f"a-{role}"
    installed.kubectl("create", "rolebinding", user, f"--clusterrole={role}", f"--user={user}", "-n", namespace)

    def said() -> dict[str, str]:
        return {
            question: installed.kubectl(
                *("auth", "can-i", *question.split(), "-n", namespace), user=user, groups=PEOPLE, check=False
            ).stdout.strip()
            for question in answers
        }

    # Aggregation and the authorizer's cache take a moment after the binding.
    wait_for(lambda: said() == answers, 30, f"the rights of {role}")
    assert said() == answers


@pytest.mark.parametrize(
    ("role", "verb", "answer"),
    [
        ("view", "list", "yes"),
        ("finetune-pool-viewer", "watch", "yes"),
        ("admin", "patch", "no"),
        ("edit", "create", "no"),
    ],
)
def test_pools_belong_to_the_platform(installed: Cluster, namespace: str, role: str, verb: str, answer: str) -> None:
    user = f"{role}-of-{namespace}"
    installed.kubectl("create", "clusterrolebinding", user, f"--clusterrole={role}", f"--user={user}")
    try:

        def said() -> str:
            done = installed.kubectl(
                "auth", "can-i", verb, "gpupools.finetune.dev", user=user, groups=PEOPLE, check=False
            )
            return done.stdout.strip()

        wait_for(lambda: said() == answer, 30, f"{role} {verb} gpupools to be answered {answer}")
        assert said() == answer
    finally:
        installed.kubectl("delete", "clusterrolebinding", user)


def test_the_dashboard_is_one_in_its_configmap() -> None:
    [found] = [
        item for (_, kind, _, _), item in objects(templated("monitoring.dashboard=true")).items() if kind == "ConfigMap"
    ]
    panels = json.loads(found["data"]["dashboard.json"])["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
