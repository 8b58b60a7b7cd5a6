"""What people ask of the API server: dry runs as a user, and the refusal in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException

from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.waiting import wait_for

GROUP, VERSION = "finetune.dev", "v1alpha1"
PEOPLE = ("system:authenticated",)


def job(name: str = "probe", **sections: Any) -> dict[str, Any]:
    """The smallest FineTuneJob, with sections of its spec replaced."""
    spec: dict[str, Any] = {
        "model": {"source": "s3://models/llama"},
        "data": {"train": [{"source": "s3://team/train.jsonl"}]},
        "output": {"adapterRef": {"name": "triage"}},
    }
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": spec | sections,
    }


def adapter(name: str = "triage", **sections: Any) -> dict[str, Any]:
    """The smallest Adapter, with sections of its spec replaced."""
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "Adapter",
        "metadata": {"name": name},
        "spec": {"storage": {"uri": "s3://team/adapters"}} | sections,
    }


class Person:
    """A user of the cluster with the roles that a test gives them; None is the administrator."""

    def __init__(self, cluster: Cluster, namespace: str, name: str | None = None) -> None:
        """No rights come with it."""
        self.name = name
        self._namespace = namespace
        self._custom = client.CustomObjectsApi(cluster.api(name, PEOPLE) if name else cluster.api())

    def create(self, manifest: dict[str, Any], *, dry: bool = True) -> str:
        """Create an object; what the API server refuses it with, empty when it does not."""
        plural = {"FineTuneJob": "finetunejobs", "Adapter": "adapters"}[manifest["kind"]]
        return _refusal(
            lambda: self._custom.create_namespaced_custom_object(
                GROUP, VERSION, self._namespace, plural, manifest, **({"dry_run": "All"} if dry else {})
            )
        )

    def patch(self, plural: str, name: str, patch: dict[str, Any], *, dry: bool = False) -> str:
        """Merge-patch an object (`plural` may name a subresource); the refusal, empty when there is none."""
        resource, _, subresource = plural.partition("/")
        call = getattr(self._custom, f"patch_namespaced_custom_object{f'_{subresource}' if subresource else ''}")
        return _refusal(
            lambda: call(GROUP, VERSION, self._namespace, resource, name, patch, **({"dry_run": "All"} if dry else {}))
        )


def _refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except ApiException as error:
        return str(json.loads(error.body)["message"])
    return ""


def in_force(cluster: Cluster, namespace: str, manifest: dict[str, Any], words: str, user: str | None = None) -> None:
    """Wait until a policy refuses what it must: the API server compiles policies in the background."""
    person = Person(cluster, namespace, user)
    wait_for(lambda: words in person.create(manifest), 60, f"the policy that says {words!r} to be in force")


def grant(cluster: Cluster, namespace: str, user: str, verb: str, resource: str, *names: str) -> None:
    """Let a user do one thing to a resource (``plural.group``), all or those of a name."""
    plural, _, group = resource.partition(".")
    rule = {"apiGroups": [group], "resources": [plural], "verbs": [verb]} | (
        {"resourceNames": list(names)} if names else {}
    )
    name = f"{user}-{verb}-{plural}"
    about = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": name, "namespace": namespace}}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}
    cluster.apply(
        [
            {**about, "kind": "Role", "rules": [rule]},
            {**about, "kind": "RoleBinding", "roleRef": reference, "subjects": [subject]},
        ]
    )
