"""The Helm chart and the kustomize base are one installation in two forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.harness.binaries import binary
from tests.manifests.rendering import (
    CHART,
    MANIFESTS,
    OVERLAYS,
    ROOT,
    Identity,
    Object,
    kustomized,
    objects,
    run,
    templated,
)

KEEP = "helm.sh/resource-policy"


def with_components(folder: Path, *names: str) -> dict[Identity, Object]:
    """The base with components, through a kustomization as a user writes it."""
    relative = Path(*[".."] * len(folder.resolve().parents), *MANIFESTS.resolve().parts[1:])
    content: dict[str, Any] = {
        "resources": [str(relative / "base")],
        "components": [str(relative / "components" / name) for name in names],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return objects(kustomized(folder))


def rendered(*settings: str, **options: str) -> dict[Identity, Object]:
    """What the chart renders, without Helm's own mark on the CRDs (looked at in a test of its own)."""
    found = objects(templated(*settings, **options))
    for (_, kind, _, _), item in found.items():
        if kind == "CustomResourceDefinition":
            annotations = item["metadata"].get("annotations", {})
            annotations.pop(KEEP, None)
            if not annotations:
                item["metadata"].pop("annotations", None)
    return found


def assert_same(chart: dict[Identity, Object], kustomize: dict[Identity, Object]) -> None:
    assert sorted(chart) == sorted(kustomize)
    different = [identity for identity in chart if chart[identity] != kustomize[identity]]
    assert different == [], json.dumps([[chart[i], kustomize[i]] for i in different[:1]], indent=1)


def test_cluster_wide() -> None:
    assert_same(rendered("namespace.create=true"), objects(kustomized(OVERLAYS / "cluster-wide")))


def test_single_namespace() -> None:
    chart = rendered("namespace.create=true", "watchNamespaces={team-a}")
    assert_same(chart, objects(kustomized(OVERLAYS / "single-namespace")))


def test_for_kind() -> None:
    chart = rendered(
        *("namespace.create=true", "replicas=1", "image.pullPolicy=Never", "image.tag=dev"),
        "image.repository=localhost/finetune-operator",
    )
    assert_same(chart, objects(kustomized(OVERLAYS / "kind")))


def test_every_component(tmp_path: Path) -> None:
    chart = rendered(
        *("namespace.create=true", "policies.strictSources=true", "policies.recordAuthor=true"),
        *("monitoring.serviceMonitor=true", "monitoring.prometheusRule=true", "monitoring.dashboard=true"),
    )
    assert_same(chart, with_components(tmp_path, "monitoring", "four-eyes", "strict-sources"))


def test_by_default_all_but_the_namespace_which_helm_makes_itself() -> None:
    wide = objects(kustomized(OVERLAYS / "cluster-wide"))
    assert sorted(set(wide) - set(rendered())) == [("v1", "Namespace", "", "finetune-system")]
    assert set(rendered()) <= set(wide)


def test_in_a_namespace_of_another_name_nothing_points_to_the_first() -> None:
    text = templated("namespace.create=true", namespace="mlops")
    assert "finetune-system" not in text
    assert "system:serviceaccount:mlops:finetune-operator" in text


def test_several_namespaces_have_a_role_each() -> None:
    found = rendered("watchNamespaces={team-a,team-b}")
    roles = {namespace for (_, kind, namespace, name) in found if (kind, name) == ("Role", "finetune-operator")}
    assert roles == {"team-a", "team-b"}
    arguments = found["apps/v1", "Deployment", "finetune-system", "finetune-operator"]["spec"]["template"]["spec"][
        "containers"
    ][0]["args"]
    assert arguments[:4] == ["--namespace", "team-a", "--namespace", "team-b"]


def test_uninstalling_keeps_what_people_made_unless_told_otherwise() -> None:
    def kept(*settings: str) -> set[str | None]:
        return {
            item["metadata"].get("annotations", {}).get(KEEP)
            for (_, kind, _, _), item in objects(templated(*settings)).items()
            if kind == "CustomResourceDefinition"
        }

    assert kept() == {"keep"}
    assert kept("crds.keep=false") == {None}
    assert kept("crds.install=false") == set()


def test_what_a_platform_sets_arrives(tmp_path: Path) -> None:
    found = rendered(
        *("image.digest=sha256:" + "a" * 64, "image.repository=registry.example.com:5000/finetune-operator"),
        *("priorityClassName=platform", "nodeSelector.pool=system", "podLabels.team=ml", "podAnnotations.note=x"),
        *("imagePullSecrets[0].name=pull", "extraArgs={--workers=4}", "tolerations[0].key=system"),
        *("networkPolicy.apiServer.cidrs={192.0.2.1/32}", "networkPolicy.apiServer.ports={8443}"),
    )
    template = found["apps/v1", "Deployment", "finetune-system", "finetune-operator"]["spec"]["template"]
    pod, container = template["spec"], template["spec"]["containers"][0]
    assert container["image"] == f"registry.example.com:5000/finetune-operator@sha256:{'a' * 64}"
    assert container["args"][-1] == "--workers=4"
    assert (pod["priorityClassName"], pod["nodeSelector"]) == ("platform", {"pool": "system"})
    assert (pod["tolerations"], pod["imagePullSecrets"]) == ([{"key": "system"}], [{"name": "pull"}])
    assert template["metadata"]["labels"] == {"app.kubernetes.io/name": "finetune-operator", "team": "ml"}
    assert template["metadata"]["annotations"] == {"note": "x"}
    policy = found["networking.k8s.io/v1", "NetworkPolicy", "finetune-system", "finetune-operator"]
    assert policy["spec"]["egress"][0] == {
        "ports": [{"port": 8443, "protocol": "TCP"}],
        "to": [{"ipBlock": {"cidr": "192.0.2.1/32"}}],
    }


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("replicas=two", "at '/replicas': got string, want integer"),
        ("image.tagg=1", "at '/image': additional properties 'tagg' not allowed"),
        ("imagee.tag=1", "additional properties 'imagee' not allowed"),
        (
            "image.pullPolicy=Sometimes",
            "at '/image/pullPolicy': value must be one of 'Always', 'IfNotPresent', 'Never'",
        ),
        ("image.digest=latest", "at '/image/digest': 'latest' does not match pattern"),
        ("image.repository=finetune-operator:1", "at '/image/repository'"),
        ("watchNamespaces={Team_A}", "at '/watchNamespaces/0': 'Team_A' does not match pattern"),
        ("watchNamespaces={a,a}", "at '/watchNamespaces': items at 0 and 1 are equal"),
        ("networkPolicy.apiServer.ports={https}", "at '/networkPolicy/apiServer/ports/0': got string, want integer"),
        ("policies.enabled=yes", "at '/policies/enabled': got string, want boolean"),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(setting: str, words: str) -> None:
    done = run(binary("helm"), "template", "x", CHART, "--set", setting)
    assert done.returncode != 0
    assert words in done.stderr


def test_every_value_is_in_the_schema_and_described() -> None:
    values = (CHART / "values.yaml").read_text()
    properties = json.loads((CHART / "values.schema.json").read_text())["properties"]
    assert set(yaml.safe_load(values)) | {"global"} == set(properties)


def test_lint() -> None:
    done = run(binary("helm"), "lint", "--strict", CHART)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


def test_versions_agree() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    base = yaml.safe_load((MANIFESTS / "base" / "kustomization.yaml").read_text())
    project = next(line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("version = "))
    assert {chart["version"], chart["appVersion"], base["images"][0]["newTag"]} == {project.split('"')[1]}
