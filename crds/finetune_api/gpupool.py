"""The GPUPool kind: what a platform team offers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import Contract, Rule
from finetune_api.common import DNS_SUBDOMAIN, LABEL_NAME_RULE, Condition, Name, ObjectMeta, Storage


class Price(Contract):
    """What a GPU hour costs."""

    gpu_per_hour: Annotated[float, Field(description="Price of one GPU hour.", ge=0, le=1e6)]
    currency: Annotated[str, Field(description="ISO 4217 code. Default USD.", pattern=r"^[A-Z]{3}$")] = "USD"


class Toleration(Contract):
    """A toleration as in a pod."""

    key: Annotated[str | None, Field(description="Taint key.", max_length=317)] = None
    operator: Annotated[Literal["Exists", "Equal"], Field(description="Exists or Equal.")] = "Equal"
    value: Annotated[str | None, Field(description="Taint value.", max_length=63)] = None
    effect: Annotated[
        Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None, Field(description="Taint effect; empty = all.")
    ] = None

    RULES = (
        Rule(
            cel="!has(self.operator) || self.operator != 'Exists' || !has(self.value)",
            message="a toleration with operator Exists has no value; leave value out, or use operator Equal",
            holds=lambda t: t.operator != "Exists" or t.value is None,
            field_path="value",
        ),
        Rule(
            cel="has(self.key) || (has(self.operator) && self.operator == 'Exists')",
            message="a toleration without key tolerates everything; set key, or operator: Exists",
            holds=lambda t: t.key is not None or t.operator == "Exists",
            field_path="operator",
        ),
    )


class PodResources(Contract):
    """CPU and memory of one pod."""

    cpu: Annotated[str, Field(description="CPU request, for example `4` or `500m`.", pattern=r"^[0-9]+m?$")]
    memory: Annotated[
        str, Field(description="Memory request and limit, for example `32Gi`.", pattern=r"^[0-9]+(Ki|Mi|Gi|Ti)$")
    ]


class PoolLimits(Contract):
    """Most one job may ask of the pool."""

    max_nodes: Annotated[int, Field(description="Nodes per job. Default 64.", ge=1, le=64)] = 64
    max_gpus: Annotated[int, Field(description="GPUs per job over all nodes. Default 64.", ge=0, le=1024)] = 64


class ModelCache(Contract):
    """A volume that prepare fills with base models, once per revision, and the other stages read."""

    claim_name: Annotated[
        str,
        Field(
            description="Name of a PersistentVolumeClaim that each namespace of the pool has, of mode ReadWriteMany "
            "(ReadWriteOnce does on a single node), writable for group 65532, large enough for the base models in "
            "use. Pods of prepare mount it writable, all others read-only.",
            min_length=1,
            max_length=253,
            pattern=DNS_SUBDOMAIN,
        ),
    ]


class GPUPoolSpec(Contract):
    """A kind of GPU node and the conditions of its use."""

    resource_name: Annotated[
        str, Field(description="Extended resource of a GPU. Default `nvidia.com/gpu`.", max_length=128)
    ] = "nvidia.com/gpu"
    gpu_memory_gib: Annotated[
        float, Field(description="Memory of one GPU in GiB, for example 80. 0 on a pool without GPUs.", ge=0, le=1024)
    ] = 0.0
    gpu_model: Annotated[
        str | None,
        Field(
            description="Model of the GPU, for example `A100-80`: what the time and cost forecast rests on. Default: "
            "read from the values of nodeSelector.",
            max_length=64,
        ),
    ] = None
    gpus_per_node: Annotated[int, Field(description="GPUs of a node; 0 makes this a CPU pool.", ge=0, le=16)]
    node_selector: Annotated[dict[str, str], Field(description="Labels of the pool's nodes.", max_length=32)] = Field(
        default_factory=dict
    )
    tolerations: Annotated[list[Toleration], Field(description="Taints of the pool's nodes.", max_length=16)] = Field(
        default_factory=list
    )
    price: Annotated[Price | None, Field(description="What a GPU hour costs; without it maxCost is refused.")] = None
    image: Annotated[
        str,
        Field(
            description="Runner image, best by digest: `registry/finetune-runner@sha256:...`.",
            min_length=1,
            max_length=512,
        ),
    ]
    image_pull_policy: Annotated[
        Literal["Always", "IfNotPresent", "Never"], Field(description="Default IfNotPresent.")
    ] = "IfNotPresent"
    cpu_pod: Annotated[PodResources, Field(description="Resources of prepare and publish.")] = PodResources(
        cpu="2", memory="8Gi"
    )
    gpu_pod: Annotated[
        PodResources, Field(description="Resources of baseline, train and evaluate, beside the GPUs.")
    ] = PodResources(cpu="4", memory="32Gi")
    scratch_size: Annotated[
        str, Field(description="Disk of each pod for model and data. Default 200Gi.", pattern=r"^[0-9]+(Mi|Gi|Ti)$")
    ] = "200Gi"
    model_cache: Annotated[
        ModelCache | None,
        Field(
            description="Where base models of hf:// and s3:// are kept between jobs. Without it every stage fetches "
            "the model again, and GPUs wait for that."
        ),
    ] = None
    default_storage: Annotated[Storage | None, Field(description="Storage of Adapters that name none.")] = None
    allowed_namespaces: Annotated[
        list[Name] | None, Field(description="Namespaces that may use the pool. Default: all.", max_length=1024)
    ] = None
    limits: Annotated[PoolLimits, Field(description="Most one job may ask for.")] = PoolLimits()
    default: Annotated[bool, Field(description="Whether jobs without compute.pool use this pool.")] = False


class GPUPoolStatus(Contract):
    """State of the pool."""

    observed_generation: Annotated[int, Field(description="Generation this status is about.")] = 0
    matching_nodes: Annotated[int, Field(description="Nodes with the labels of `spec.nodeSelector`.")] = 0
    ready_nodes: Annotated[
        int, Field(description="Of these, nodes that take pods: Ready, not cordoned, every taint tolerated.")
    ] = 0
    allocatable_gpus: Annotated[int, Field(description="GPUs that the ready nodes offer to pods, in use or not.")] = 0
    largest_node_gpus: Annotated[int, Field(description="Most GPUs that one ready node offers.")] = 0
    conditions: Annotated[
        list[Condition],
        Field(
            description="Ready: whether nodes take pods of the pool now. A pool that is not Ready still accepts jobs.",
            max_length=8,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = Field(default_factory=list)


class GPUPool(Contract):
    """A kind of GPU node that jobs may name. Cluster-scoped; owned by the platform team."""

    api_version: Literal["finetune.dev/v1alpha1"] = "finetune.dev/v1alpha1"
    kind: Literal["GPUPool"] = "GPUPool"
    metadata: ObjectMeta
    spec: Annotated[GPUPoolSpec, Field(description="What the pool offers.")]
    status: Annotated[GPUPoolStatus | None, Field(description="State, written by the operator.")] = None

    RULES = (LABEL_NAME_RULE,)
