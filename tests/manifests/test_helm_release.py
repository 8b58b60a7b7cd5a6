"""A release as a platform team has it: installed, upgraded, and uninstalled without losing what people made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.harness.binaries import binary
from tests.cluster.harness.controlplane import ControlPlane
from tests.manifests.people import Person, in_force, job
from tests.manifests.rendering import CHART, run

RELEASE, NAMESPACE = "tuning", "mlops"


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """A cluster that has never seen the operator."""
    with ControlPlane() as own:
        yield own


def helm(plane: ControlPlane, *arguments: Any) -> str:
    done = run(binary("helm"), "--kubeconfig", plane.admin_kubeconfig, "--namespace", NAMESPACE, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_install_upgrade_uninstall(plane: ControlPlane) -> None:
    told = helm(plane, "install", RELEASE, CHART, "--create-namespace")
    assert "serves every namespace" in told
    assert "pod-security.kubernetes.io/enforce=restricted" in told

    def deployment() -> dict[str, Any]:
        shown = plane.kubectl("get", "deployment", "finetune-operator", "-n", NAMESPACE, "-o", "json").stdout
        found: dict[str, Any] = json.loads(shown)
        return found

    assert deployment()["spec"]["replicas"] == 2
    # The policies know the operator by the namespace it was installed into.
    operator = f"system:serviceaccount:{NAMESPACE}:finetune-operator"
    policy = plane.kubectl("get", "validatingadmissionpolicy", "finetune-adapterversions", "-o", "yaml").stdout
    assert operator in policy
    in_force(plane, "default", job(model={"source": "file:///m"}), "spec.model.source: file://")
    assert Person(plane, "default").create(job("kept"), dry=False) == ""

    # An older CRD stands in for an older release: an upgrade brings it up to date.
    removed = {"op": "remove", "path": "/spec/versions/0/additionalPrinterColumns"}
    plane.kubectl("patch", "crd", "finetunejobs.finetune.dev", "--type=json", "-p", json.dumps([removed]))
    helm(plane, "upgrade", RELEASE, CHART, "--set", "replicas=3", "--force-conflicts")
    assert deployment()["spec"]["replicas"] == 3
    crd = json.loads(plane.kubectl("get", "crd", "finetunejobs.finetune.dev", "-o", "json").stdout)
    assert crd["spec"]["versions"][0].get("additionalPrinterColumns")

    helm(plane, "uninstall", RELEASE)
    left = plane.kubectl("get", "deployment,role,clusterrole,validatingadmissionpolicy", "-A", "-o", "name").stdout
    assert "finetune" not in left
    assert plane.kubectl("get", "finetunejob", "kept", "-n", "default", "-o", "name").stdout.strip()
