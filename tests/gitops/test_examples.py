"""The examples are YAML that names only what exists; their expressions are judged in test_health.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.crd import KINDS

EXAMPLES = Path(__file__).parents[2] / "examples" / "gitops"
FILES = sorted(EXAMPLES.glob("*.yaml"))


def documents(file: Path) -> list[dict[str, Any]]:
    return [item for item in yaml.safe_load_all(file.read_text()) if item]


def test_there_is_one_for_each_tool() -> None:
    assert [file.stem for file in FILES] == ["argocd", "flux"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_object_is_whole(file: Path) -> None:
    for item in documents(file):
        assert {"apiVersion", "kind", "metadata", "spec"} <= item.keys()
        assert item["metadata"]["name"]


def test_flux_waits_for_kinds_that_exist_on_kustomizations_that_exist() -> None:
    items = documents(EXAMPLES / "flux.yaml")
    names = {item["metadata"]["name"] for item in items if item["kind"] == "Kustomization"}
    for item in items:
        for needed in item["spec"].get("dependsOn", []):
            assert needed["name"] in names
        for check in (*item["spec"].get("healthChecks", []), *item["spec"].get("healthCheckExprs", [])):
            assert (check["apiVersion"], check["kind"]) in {("finetune.dev/v1alpha1", kind.name) for kind in KINDS}


def test_argo_cd_never_forces() -> None:
    """`Force` and `Replace` would delete a running job where an edit is refused."""
    for item in documents(EXAMPLES / "argocd.yaml"):
        spec = item["spec"].get("template", item)["spec"]
        options = spec["syncPolicy"]["syncOptions"]
        assert "ServerSideApply=true" in options
        assert not {"Force=true", "Replace=true"} & set(options)
