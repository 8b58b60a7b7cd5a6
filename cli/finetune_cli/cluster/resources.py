"""Which kinds of objects are asked for, and their paths in the API."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from finetune_api.base import API_GROUP, API_VERSION


@dataclass(frozen=True)
class Resource:
    """A kind of object as the API's paths and people know it."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """Path of a collection (of all namespaces when `namespace` is None), an object or its subresource."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if self.namespaced and namespace is not None:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/" + "/".join(quote(part, safe="") for part in parts)

    @property
    def full_name(self) -> str:
        """`finetunejobs.finetune.dev`, as kubectl and RBAC messages say it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


FINETUNE_JOBS = Resource(API_GROUP, API_VERSION, "finetunejobs", "FineTuneJob")
GPU_POOLS = Resource(API_GROUP, API_VERSION, "gpupools", "GPUPool", namespaced=False)
ADAPTERS = Resource(API_GROUP, API_VERSION, "adapters", "Adapter")
ADAPTER_VERSIONS = Resource(API_GROUP, API_VERSION, "adapterversions", "AdapterVersion")
JOBS = Resource("batch", "v1", "jobs", "Job")
PODS = Resource("", "v1", "pods", "Pod")
EVENTS = Resource("events.k8s.io", "v1", "events", "Event")
SELF_SUBJECT_REVIEWS = Resource(
    "authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview", namespaced=False
)

OURS = {resource.kind: resource for resource in (FINETUNE_JOBS, GPU_POOLS, ADAPTERS, ADAPTER_VERSIONS)}
"""The kinds of this product, by the name in a YAML."""
