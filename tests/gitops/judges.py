"""The real evaluation code of Argo CD, kpt and Flux, asked about objects."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.harness.binaries import binary

MANIFESTS = Path(__file__).parents[2] / "manifests"
DEADLINE_S = 120

Object = dict[str, Any]


def _ask(program: str, question: dict[str, Any]) -> list[dict[str, str]]:
    done = subprocess.run(
        [binary(program)],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@cache
def argocd_configmap() -> dict[str, str]:
    """The data that `kubectl kustomize manifests/argocd` adds to argocd-cm."""
    kubectl = binary("kubernetes", "kubectl")
    done = subprocess.run([kubectl, "kustomize", MANIFESTS / "argocd"], capture_output=True, text=True, check=True)
    [configmap] = [item for item in yaml.safe_load_all(done.stdout) if item["kind"] == "ConfigMap"]
    data: dict[str, str] = configmap["data"]
    return data


def argo_health(objects: Sequence[Object], configmap: dict[str, str] | None = None) -> list[dict[str, str]]:
    """Status and message that Argo CD shows for each object."""
    data = argocd_configmap() if configmap is None else configmap
    return _ask("argohealth", {"configMap": data, "objects": list(objects)})


def argo_differences(pairs: Sequence[tuple[Object, Object]]) -> list[str]:
    """What a sync would make of each pair (in Git, in the cluster); empty for a pair that Argo CD calls Synced."""
    question = {"configMap": argocd_configmap(), "pairs": [{"git": git, "live": live} for git, live in pairs]}
    return [told["message"] for told in _ask("argohealth", question)]


def kstatus(objects: Sequence[Object]) -> list[dict[str, str]]:
    """Status and message that kpt and Flux compute for each object."""
    return _ask("kstatus", {"objects": list(objects)})


def flux_expressions(objects: Sequence[Object], expressions: dict[str, str]) -> list[str]:
    """What Flux makes of each object under `healthCheckExprs`."""
    return [told["status"] for told in _ask("kstatus", {"objects": list(objects), "expressions": expressions})]
