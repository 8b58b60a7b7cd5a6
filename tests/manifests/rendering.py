"""What kubectl and Helm render, as objects by (apiVersion, kind, namespace, name)."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.harness.binaries import binary

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
CHART = MANIFESTS / "chart"
OVERLAYS = MANIFESTS / "overlays"

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's where it is there: it reads the CRDs ten times as fast."""

Identity = tuple[str, str, str, str]
Object = dict[str, Any]


def objects(text: str) -> dict[Identity, Object]:
    """The objects of a YAML stream.

    Raises:
        AssertionError: two have the same identity.
    """
    found: dict[Identity, Object] = {}
    for document in yaml.load_all(text, Loader=LOADER):
        if document:
            metadata = document["metadata"]
            identity = (document["apiVersion"], document["kind"], metadata.get("namespace", ""), metadata["name"])
            assert identity not in found, f"rendered twice: {identity}"
            found[identity] = document
    return found


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program; its output and errors are text on the result."""
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=120)


@functools.cache
def kustomized(folder: Path) -> str:
    """The output of ``kubectl kustomize``."""
    done = run(binary("kubernetes", "kubectl"), "kustomize", folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def templated(*settings: str, release: str = "finetune-operator", namespace: str = "finetune-system") -> str:
    """The output of ``helm template`` with ``--set`` settings."""
    values = [argument for setting in settings for argument in ("--set", setting)]
    done = run(binary("helm"), "template", release, CHART, "--namespace", namespace, *values)
    assert done.returncode == 0, done.stderr
    return done.stdout


def permissions(rendered: dict[Identity, Object]) -> dict[tuple[str, str], set[tuple[str, str, str]]]:
    """What the operator may do: (group, resource, verb) by (kind, namespace) of the role that allows it.

    Only roles bound to the operator's ServiceAccount count.
    """
    found: dict[tuple[str, str], set[tuple[str, str, str]]] = {}
    for (_, kind, namespace, _), binding in rendered.items():
        if kind not in ("RoleBinding", "ClusterRoleBinding"):
            continue
        assert [subject["name"] for subject in binding["subjects"]] == ["finetune-operator"], binding
        reference = binding["roleRef"]
        [role] = [
            item
            for (_, role_kind, role_namespace, name), item in rendered.items()
            if (role_kind, name) == (reference["kind"], reference["name"])
            and role_namespace == (namespace if role_kind == "Role" else "")
        ]
        found.setdefault((kind, namespace), set()).update(
            (group, resource, verb)
            for rule in role["rules"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        )
    return found
