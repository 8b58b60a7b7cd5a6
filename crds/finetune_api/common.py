"""Types shared by several kinds: references, storage, conditions, durations, metadata."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from finetune_api.base import Contract, Rule, Timestamp

DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DNS_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
DURATION = r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"

Name = Annotated[str, Field(min_length=1, max_length=63, pattern=DNS_LABEL)]
PriorityName = Annotated[str, Field(min_length=1, max_length=63, pattern=DNS_SUBDOMAIN)]
"""A DNS subdomain that also fits into a label value: Kueue reads the class from a label of the Job."""
Duration = Annotated[str, Field(min_length=2, max_length=32, pattern=DURATION)]
JSONPath = Annotated[str, Field(max_length=256, pattern=r"^\$(\.[A-Za-z_][A-Za-z0-9_-]*)+$")]


def duration_s(text: str) -> int:
    """Seconds of a duration such as `24h`, `90m` or `1h30m`."""
    units_s = {"h": 3600, "m": 60, "s": 1}
    return sum(int(amount) * units_s[unit] for amount, unit in re.findall(r"([0-9]+)([hms])", text))


class SecretRef(Contract):
    """A Secret in the job's namespace. Its keys are files of the pod that needs them; the operator never reads it."""

    name: Annotated[
        str,
        Field(
            description="Name of the Secret.", min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
        ),
    ]


class Storage(Contract):
    """Where versions and runs are kept."""

    uri: Annotated[
        str,
        Field(
            description="Root in object storage, `s3://bucket/prefix` (or `file:///path` without a cluster). "
            "Everything is written below `<root>/<namespace>/<adapter>/`.",
            max_length=512,
            pattern=r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._=-]+)*/?|file://[^\x00-\x1f\x7f]+)$",
        ),
    ]
    endpoint: Annotated[
        str | None,
        Field(
            description="URL of an S3-compatible service, for example `https://minio.storage:9000`. Default: AWS.",
            max_length=512,
            pattern=r"^https?://[^\x00-\x20\x7f@]+$",
        ),
    ] = None
    region: Annotated[str | None, Field(description="S3 region. Default: `us-east-1`.", max_length=64)] = None
    secret_ref: Annotated[
        SecretRef | None,
        Field(
            description="Secret with `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` (and optionally "
            "`AWS_SESSION_TOKEN`). Default: the identity of the service account."
        ),
    ] = None

    RULES = (
        Rule(
            cel="!self.uri.contains('/../') && !self.uri.endsWith('/..')",
            message="storage.uri must not contain '..'; name the folder itself",
            holds=lambda s: "/../" not in s.uri and not s.uri.endswith("/.."),
            field_path="uri",
        ),
        Rule(
            cel="self.uri.startsWith('s3://') || (!has(self.endpoint) && !has(self.region) && !has(self.secretRef))",
            message="endpoint, region and secretRef belong to s3:// storage; leave them out for file://",
            holds=lambda s: s.uri.startswith("s3://") or not (s.endpoint or s.region or s.secret_ref),
            field_path="uri",
        ),
    )


class Condition(Contract):
    """A condition in the sense of the Kubernetes API conventions."""

    type: Annotated[str, Field(description="Name of the condition.", max_length=64)]
    status: Annotated[Literal["True", "False", "Unknown"], Field(description="True, False or Unknown.")]
    reason: Annotated[str, Field(description="One CamelCase word for machines.", max_length=128)]
    message: Annotated[str, Field(description="One sentence for people.", max_length=1024)] = ""
    observed_generation: Annotated[int, Field(description="Generation this condition was computed for.")] = 0
    last_transition_time: Annotated[Timestamp, Field(description="When status last changed.")]


LABEL_NAME_RULE = Rule(
    cel="size(self.metadata.name) <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
    message="metadata.name must be at most 63 characters of a-z, 0-9 and '-'; rename it, jobs refer to it by this name",
    holds=lambda kind: (
        not kind.metadata.name
        or (len(kind.metadata.name) <= 63 and re.fullmatch(DNS_LABEL, kind.metadata.name) is not None)
    ),
)
"""For kinds that other objects name in a field of type Name."""


class ObjectMeta(Contract):
    """The part of Kubernetes metadata that the product reads; other fields pass through unread."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", strict=True, frozen=True)

    name: str = ""
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    creation_timestamp: Timestamp | None = None
    deletion_timestamp: Timestamp | None = None
    owner_references: list[dict[str, Any]] = Field(default_factory=list)
