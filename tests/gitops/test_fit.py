"""An operator on the wrong cluster: an old Kubernetes, CRDs of another contract. It says so in a line, and recovers."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.compatibility import PUBLISHED
from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.controlplane import ControlPlane
from tests.cluster.harness.operator_process import GROUPS, SERVICE_ACCOUNT, OperatorProcess
from tests.cluster.harness.waiting import wait_for
from tests.gitops.gateway import Gateway

ROOT = Path(__file__).parents[2]
DEADLINE_S = 90


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[Cluster]:
    """A cluster of its own: other tests need CRDs that fit."""
    with ControlPlane() as cluster:
        cluster.kubectl("apply", "--server-side", "-k", ROOT / "manifests" / "base")
        yield cluster


def says(process: OperatorProcess, words: str) -> str:
    """Wait until readiness says something, in one line."""
    wait_for(
        lambda: process.check() and words in process.readiness(),
        DEADLINE_S,
        f"the operator to say {words!r}",
        context=lambda: f"{process.readiness()}\n{process.log_tail()}",
    )
    told = process.readiness().strip()
    assert "\n" not in told
    assert process.get("readyz")[0] == 503
    return told


def recovers(process: OperatorProcess) -> None:
    """Wait until the operator is ready, in the process that was not."""
    wait_for(
        lambda: process.check() and process.readiness() == "ok\n",
        DEADLINE_S,
        "the operator to be ready",
        context=lambda: f"{process.readiness()}\n{process.log_tail()}",
    )


def old_kubernetes(told: dict[str, Any]) -> dict[str, Any]:
    return {"major": "1", "minor": "31", "gitVersion": "v1.31.4", "platform": told["platform"]}


def test_an_old_kubernetes_is_named_and_an_upgrade_is_noticed(own_cluster: Cluster, tmp_path: Path) -> None:
    gateway = Gateway(own_cluster.kubeconfig(SERVICE_ACCOUNT, GROUPS), {"/version": old_kubernetes})
    with gateway:
        process = OperatorProcess(own_cluster, name="operator-old-kubernetes", extra=("--audit-seconds", "1"))
        process.command[process.command.index("--kubeconfig") + 1] = str(gateway.kubeconfig(tmp_path / "kubeconfig"))
        process.start()
        try:
            told = says(process, "is not supported")
            assert told == (
                "Kubernetes v1.31.4 is not supported: this operator needs 1.33 or newer; upgrade the cluster"
            )
            gateway.edits.clear()
            recovers(process)
        finally:
            process.kill()


def crd() -> dict[str, Any]:
    """The CRD of FineTuneJobs as it is committed."""
    document: dict[str, Any] = yaml.safe_load((ROOT / "crds" / "finetune.dev_finetunejobs.yaml").read_text())
    return document


def test_crds_of_another_contract_are_named_and_the_right_ones_are_noticed(own_cluster: Cluster) -> None:
    """Older at the start, newer while it runs, right in between and after."""
    older, newer = crd(), crd()
    for document, change in ((older, _without_plan), (newer, _with_a_new_field)):
        change(document["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"])
    _replace(own_cluster, older)
    _shown(own_cluster, plan=False, dreams=False)
    process = OperatorProcess(own_cluster, name="operator-other-crds", extra=("--audit-seconds", "1"))
    process.start()
    try:
        assert says(process, "older") == (
            "CRD finetunejobs.finetune.dev is older than this operator, it lacks status.plan; apply the CRDs of the "
            "operator's version (crds/*.yaml)"
        )
        _replace(own_cluster, crd())
        recovers(process)
        _replace(own_cluster, newer)
        assert says(process, "newer") == (
            "CRD finetunejobs.finetune.dev is newer than this operator, which does not know spec.dreams; install the "
            "operator of the CRDs' version"
        )
        _replace(own_cluster, crd())
        recovers(process)
    finally:
        process.kill()


def _without_plan(properties: dict[str, Any]) -> None:
    del properties["status"]["properties"]["plan"]


def _with_a_new_field(properties: dict[str, Any]) -> None:
    properties["spec"]["properties"]["dreams"] = {"type": "boolean", "description": "Of a later version."}


def _replace(cluster: Cluster, document: dict[str, Any]) -> None:
    """Put a CRD in place as a whole: a field that is left out is gone."""
    stored = json.loads(cluster.kubectl("get", "crd", document["metadata"]["name"], "-o", "json").stdout)
    body = copy.deepcopy(document)
    body["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"]
    cluster.kubectl("replace", "-f", "-", input=yaml.safe_dump(body))


def _shown(cluster: Cluster, *, plan: bool, dreams: bool) -> None:
    """The API server publishes a changed schema a moment later."""

    def reached() -> bool:
        document = json.loads(cluster.kubectl("get", "--raw", PUBLISHED).stdout)
        schemas = document["components"]["schemas"]
        [job] = [schema for name, schema in schemas.items() if name.endswith(".FineTuneJob")]
        properties = job["properties"]
        found = ("plan" in properties["status"]["properties"], "dreams" in properties["spec"]["properties"])
        return found == (plan, dreams)

    wait_for(reached, DEADLINE_S, "the schema to be published")


def test_a_missing_crd_and_a_missing_right_are_one_line_each(own_cluster: Cluster) -> None:
    own_cluster.kubectl("delete", "crd", "gpupools.finetune.dev")
    own_cluster.kubectl("delete", "clusterrolebinding", "finetune-operator", "finetune-operator-cluster")
    process = OperatorProcess(own_cluster, name="operator-nothing-there", extra=("--audit-seconds", "1"))
    process.start()
    try:
        told = says(process, "apply the operator's RBAC")
        assert told.startswith("gpupools.finetune.dev: ")
        assert SERVICE_ACCOUNT in told
        own_cluster.kubectl("apply", "--server-side", "-f", ROOT / "manifests" / "base" / "rbac.yaml")
        assert says(process, "does not exist") == "gpupools.finetune.dev does not exist; apply the CRDs (crds/*.yaml)"
        own_cluster.kubectl("apply", "--server-side", "--force-conflicts", "-k", ROOT / "crds")
        recovers(process)
    finally:
        process.kill()
