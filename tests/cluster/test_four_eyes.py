"""The component `four-eyes`: a job's author is recorded by the API server and cannot be forged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.waiting import wait_for

COMPONENT = Path(__file__).parents[2] / "manifests" / "components" / "four-eyes" / "record-author.yaml"
AUTHOR = "finetune.dev/requested-by"


@pytest.fixture
def recording(installed: Cluster) -> Iterator[Cluster]:
    served = installed.kubectl("api-resources", "--api-group=admissionregistration.k8s.io", "-o", "name").stdout
    if "mutatingadmissionpolicies" not in served:
        pytest.skip("needs MutatingAdmissionPolicy: Kubernetes 1.36 or newer")
    installed.kubectl("apply", "--server-side", "-f", COMPONENT)
    yield installed
    installed.kubectl("delete", "-f", COMPONENT)


def job(name: str, **annotations: str) -> str:
    manifest: dict[str, Any] = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {
            "suspend": True,
            "model": {"source": "s3://models/llama"},
            "data": {"train": [{"source": "s3://team/train.jsonl"}]},
            "output": {"adapterRef": {"name": "triage"}},
        },
    }
    return yaml.safe_dump(manifest)


def author(cluster: Cluster, namespace: str, name: str) -> str:
    shown = json.loads(cluster.kubectl("get", "ftj", name, "-n", namespace, "-o", "json").stdout)
    return str(shown["metadata"].get("annotations", {}).get(AUTHOR, ""))


def test_the_author_is_who_last_changed_the_spec_whatever_they_say(recording: Cluster, namespace: str) -> None:
    for person in ("wendy", "walt"):
        recording.kubectl("create", "rolebinding", person, "--clusterrole=edit", f"--user={person}", "-n", namespace)

    def recorded() -> bool:
        recording.kubectl("delete", "ftj", "probe", "-n", namespace, "--ignore-not-found")
        done = recording.kubectl("create", "-n", namespace, "-f", "-", input=job("probe"), user="wendy", check=False)
        return done.returncode == 0 and author(recording, namespace, "probe") == "wendy"

    wait_for(recorded, 60, "the policy to be in force")
    forged = job("forged", **{AUTHOR: "somebody-else"})
    recording.kubectl("create", "-n", namespace, "-f", "-", input=forged, user="wendy")
    assert author(recording, namespace, "forged") == "wendy"

    def patch(user: str, body: dict[str, Any]) -> None:
        recording.kubectl("patch", "ftj", "forged", "-n", namespace, "--type=merge", "-p", json.dumps(body), user=user)

    patch("walt", {"metadata": {"annotations": {AUTHOR: "nobody"}}})
    assert author(recording, namespace, "forged") == "wendy"
    patch("walt", {"spec": {"training": {"epochs": 2}}})
    assert author(recording, namespace, "forged") == "walt"
