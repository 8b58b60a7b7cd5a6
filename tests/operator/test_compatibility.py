"""Versions of Kubernetes and contracts that fit, and what is said of those that do not."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from finetune_api.crd import KINDS, schema_of
from finetune_operator.compatibility import contract_problem, kubernetes_problem
from finetune_operator.field_manager import field_manager, written_by

VERSIONS = [
    ({"major": "1", "minor": "33", "gitVersion": "v1.33.0"}, ""),
    ({"major": "1", "minor": "36+", "gitVersion": "v1.36.3-gke.1"}, ""),
    ({"major": "2", "minor": "0", "gitVersion": "v2.0.0"}, ""),
    ({"major": "1", "minor": "32+", "gitVersion": "v1.32.9-eks-1"}, "Kubernetes v1.32.9-eks-1 is not supported"),
    (
        {"major": "1", "minor": "35", "emulationMajor": "1", "emulationMinor": "32", "gitVersion": "v1.35.0"},
        "Kubernetes v1.35.0 (emulating 1.32) is not supported",
    ),
    ({"major": "1", "minor": "36", "emulationMajor": "1", "emulationMinor": "36", "gitVersion": "v1.36.3"}, ""),
    ({"major": "", "minor": "", "gitVersion": "v1.20.0"}, "Kubernetes v1.20.0 is not supported"),
    ({}, "is not supported"),
]


@pytest.mark.parametrize(("told", "problem"), VERSIONS)
def test_kubernetes(told: dict[str, Any], problem: str) -> None:
    said = kubernetes_problem(told)
    assert problem in said
    assert bool(said) == bool(problem)
    assert not said or "1.33 or newer" in said


def published() -> dict[str, Any]:
    """An OpenAPI document with our schemas, as the API server shows them."""
    schemas: dict[str, Any] = {
        f"dev.finetune.v1alpha1.{kind.name}": copy.deepcopy(schema_of(kind))
        | {"x-kubernetes-group-version-kind": [{"group": "finetune.dev", "version": "v1alpha1", "kind": kind.name}]}
        for kind in KINDS
    }
    schemas["io.k8s.apimachinery.pkg.apis.meta.v1.Status"] = {
        "x-kubernetes-group-version-kind": [{"group": "", "version": "v1", "kind": "Status"}]
    }
    return {"components": {"schemas": schemas}}


def part(document: dict[str, Any], kind: str, *path: str) -> dict[str, Any]:
    found: dict[str, Any] = document["components"]["schemas"][f"dev.finetune.v1alpha1.{kind}"]["properties"]
    for name in path:
        found = found[name]["properties"]
    return found


def test_our_own_crds_fit() -> None:
    assert contract_problem(published()) == ""


def test_older_crds_are_named_with_what_they_lack() -> None:
    document = published()
    for name in ("plan", "cost", "metric", "verdict", "gates"):
        del part(document, "FineTuneJob", "status")[name]
    said = contract_problem(document)
    assert said.startswith("CRD finetunejobs.finetune.dev is older than this operator, it lacks status.metric, ")
    assert "and 2 more; apply the CRDs" in said


def test_newer_crds_are_named_with_what_is_not_known() -> None:
    document = published()
    part(document, "Adapter", "spec", "policy")["auditors"] = {
        "type": "object",
        "properties": {"required": {"type": "integer"}},
    }
    said = contract_problem(document)
    assert "CRD adapters.finetune.dev is newer than this operator, which does not know spec.policy.auditors;" in said


def test_a_crd_that_is_not_shown_yet_is_waited_for() -> None:
    document = published()
    del document["components"]["schemas"]["dev.finetune.v1alpha1.GPUPool"]
    assert contract_problem(document) == "the API server does not show the schema of gpupools.finetune.dev yet"
    assert "yet" in contract_problem({})


def entry(manager: str, time: str, subresource: str = "status") -> dict[str, Any]:
    return {"manager": manager, "time": time, "subresource": subresource, "operation": "Update"}


MARKS = [
    ([], ""),
    ([entry("kubectl", "2026-01-02T00:00:00Z")], ""),
    ([entry("finetune-operator.a", "2026-01-01T00:00:00Z")], "a"),
    ([entry("finetune-operator.a", "2026-01-01T00:00:00Z", "")], ""),
    ([entry("finetune-operator.b", "2026-01-01T00:00:00Z"), entry("finetune-operator.a", "2026-01-02T00:00:00Z")], "a"),
    ([entry(field_manager("finetune-system"), "2026-01-01T00:00:00Z")], "finetune-system"),
]


@pytest.mark.parametrize(("fields", "namespace"), MARKS)
def test_the_last_writer_of_the_status_is_whose_object_it_is(fields: list[dict[str, Any]], namespace: str) -> None:
    assert written_by({"managedFields": fields}) == namespace
