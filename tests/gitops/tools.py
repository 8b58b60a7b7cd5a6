"""What Git and its tools do to a cluster: apply in both ways, diff, and look at who owns which field."""

from __future__ import annotations

from typing import Any

import yaml

from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.runs import Runs

Object = dict[str, Any]
ARGO_CD = ("--server-side", "--force-conflicts", "--field-manager=argocd-controller")
FLUX = ("--server-side", "--force-conflicts", "--field-manager=kustomize-controller")
CLIENT_SIDE: tuple[str, ...] = ()
WAYS = {"kubectl apply": CLIENT_SIDE, "Argo CD": ARGO_CD, "Flux": FLUX}


def apply(cluster: Cluster, manifest: Object, *flags: str, **options: Any) -> str:
    """Apply an object; what kubectl said, also when it was refused (with `check=False`)."""
    done = cluster.kubectl("apply", *flags, "-f", "-", input=yaml.safe_dump(manifest, sort_keys=False), **options)
    return str(done.stdout + done.stderr)


def diff(cluster: Cluster, manifest: Object, *flags: str) -> str:
    """What `kubectl diff` finds; empty when nothing would change."""
    done = cluster.kubectl("diff", *flags, "-f", "-", input=yaml.safe_dump(manifest, sort_keys=False), check=False)
    assert done.returncode in (0, 1), done.stderr
    return str(done.stdout)


def read(cluster: Cluster, manifest: Object) -> Object:
    """The object as the API server has it, with managedFields."""
    place = ("-n", manifest["metadata"]["namespace"]) if "namespace" in manifest["metadata"] else ()
    what = f"{manifest['kind'].lower()}.finetune.dev/{manifest['metadata']['name']}"
    shown = cluster.kubectl("get", what, *place, "-o", "yaml", "--show-managed-fields")
    stored: Object = yaml.safe_load(shown.stdout)
    return stored


def owned(stored: Object, manager: str) -> set[str]:
    """Top-level parts of an object that a field manager owns, for example {"spec", "metadata"}."""
    return {
        part.removeprefix("f:")
        for entry in stored["metadata"]["managedFields"]
        if entry["manager"].startswith(manager)
        for part in entry["fieldsV1"]
    }


def status_managers(runs: Runs, job: str) -> set[str]:
    """Who has written a FineTuneJob's status."""
    stored = read(runs.cluster, {"kind": "FineTuneJob", "metadata": {"name": job, "namespace": runs.namespace}})
    return {entry["manager"] for entry in stored["metadata"]["managedFields"] if entry.get("subresource") == "status"}
